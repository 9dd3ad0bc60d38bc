"""A call as a graph of torch operations, without Keras's Python code around each of them."""

from torch.fx.experimental.proxy_tensor import make_fx

from keras_llm.backend.ids import check_ids, deferred_checks
from keras_llm.backend.torch import tensors as facts
from keras_llm.backend.torch.constants import fold_constants
from keras_llm.backend.torch.views import merge_views
from keras_llm.training.torch.compile_policy import GraphInUse


class CapturedGraph:
    """The operations of one call, for inputs of its shapes.

    Attributes:
        in_use: The `GraphInUse`.
    """

    def __init__(self):
        # Of ids, which have no values while the graph is traced: the number of the input, and more.
        self._checks = []

    def capture(self, call, tensors, training: bool):
        """Makes the graph of a function of tensors."""
        module = make_fx(call, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
        merge_views(module)
        fold_constants(module)
        self.in_use = GraphInUse(module, training)

    def checks_noted(self, inputs):
        """Context manager of the traced call, which notes the checks of its inputs."""

        def accept(ids, vocab_size, what) -> bool:
            for index, tensor in enumerate(inputs):
                if ids is tensor and facts.is_on_host(ids):
                    self._checks.append((index, vocab_size, what))
                    return True
            return False

        return deferred_checks(accept)

    def check(self, inputs):
        """Makes these checks; raises as `check_ids`."""
        for index, vocab_size, what in self._checks:
            check_ids(inputs[index], vocab_size, what)


def check_seeds(variables, are_new):
    """Raises `NotImplementedError` where a call has changed the state of a seed generator.

    Its graph would draw the same noise every time.
    """
    for variable, is_new in zip(variables, are_new, strict=True):
        if is_new and variable.name == "seed_generator_state":
            raise NotImplementedError("a layer draws random numbers through Keras")
