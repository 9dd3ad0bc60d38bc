"""What goes into each layer and comes out, on PyTorch: also of modules that are not Keras's."""

import contextlib

from torch.nn.modules import module as torch_module


@contextlib.contextmanager
def layers_seen(model, seen):
    """Context manager in which `seen(name, inputs, outputs)` is called after each layer.

    Args:
        model: The Keras model.
        seen: Called with a layer's path, or the name of another module inside the model.
    """
    names = {id(module): name for name, module in model.named_modules()}

    def hook(module, arguments, keywords, outputs):
        name = getattr(module, "path", None) or names.get(id(module), type(module).__name__)
        seen(name, (arguments, keywords), outputs)

    handle = torch_module.register_module_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        # PyTorch 2.13 leaves this mark of a hook, and `torch.compile` warns of it ever after.
        getattr(torch_module, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)
