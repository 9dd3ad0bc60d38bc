"""Parameters that are divided among processes, and gathered layer by layer."""

import contextlib

import keras
import torch

from keras_llm.training.torch.parameter_blocks import Block, parts_of, sent_dtypes, unchanged


class ShardedParameters:
    """A model's parameters in a process that keeps its own alone: see `distribute`.

    A layer's parameters are gathered before its forward pass and given back after it, and once more
    for its backward pass. While one layer computes, the next one's are on their way. What is in no
    layer, embeddings, the last norm and the head, is gathered once a pass.

    Every process takes part in every gathering. So all make the same number of passes, one that has
    no rows included.

    Args:
        sharded: The `ShardedOptimizer`.
        step: The `ProcessStep`.

    Raises:
        ValueError: passes would not be the same in all processes.
    """

    def __init__(self, sharded, step):
        check(step)
        self.sharded, self.group = sharded, sharded.group
        self.channel = None
        self.blocks, self.rest, self._hooks = [], None, []

    @property
    def is_divided(self) -> bool:
        """Whether each process has only its own values, outside of passes."""
        return bool(self._hooks) or self.rest is not None

    def divide(self, model):
        """Gives back what other processes have, from now on.

        Raises:
            ValueError: a weight has a regularizer, which would read it when it is not there.
        """
        # Sums of gradients begin when a process has them, in an order of their own.
        self.channel = self.channel or self.group.new_channel()
        variables = model.trainable_variables
        check_regularizers(variables)
        owners = dict(
            zip((id(v.value) for v in variables), self.sharded.owners(variables), strict=True)
        )
        tensors = [v.value for v in variables]
        facts = owners, sent_dtypes(model, tensors)
        layers, rest = parts_of(model, tensors)
        for layer, part in layers:
            self.blocks.append(self.block(part, *facts))
            self.follow(layer, len(self.blocks) - 1)
        self.rest = self.block(rest, *facts)
        for block in (*self.blocks, self.rest):
            block.free()
            block.hide()

    def block(self, tensors, *facts):
        """A `Block` of some tensors, whose owners and dtypes are known by their ids."""
        facts = ([fact[id(tensor)] for tensor in tensors] for fact in facts)
        return Block(self.group, self.channel, tensors, *facts)

    def follow(self, layer, index: int):
        """Gathers and gives back a layer's parameters around its passes."""
        before = layer.register_forward_pre_hook(
            lambda _, args, named: self.before_forward(index, args, named), with_kwargs=True
        )
        after = layer.register_forward_hook(lambda _, args, out: self.after_forward(index, out))
        self._hooks += [before, after]

    def before_forward(self, index, args, named):
        """Gathers, and has the next layer's values sent."""
        block = self.blocks[index]
        block.gather()
        self.begin(index + 1)
        if torch.is_grad_enabled():
            # The gradient of what goes in is the last that a layer's backward pass makes.
            first = next(filter(needs_gradient, keras.tree.flatten((args, named))), None)
            if first is not None:
                first.register_hook(lambda _: block.free())

    def after_forward(self, index, outputs):
        """Gives back, and gathers again before the backward pass."""
        block = self.blocks[index]
        found = list(filter(needs_gradient, keras.tree.flatten(outputs)))
        if not torch.is_grad_enabled():
            block.free()
        elif found:
            for tensor in found:
                tensor.register_hook(lambda _: self.before_backward(index))
            # The backward pass begins with the last layer.
            if index + 1 < len(self.blocks):
                block.free()

    def before_backward(self, index):
        """Gathers, and has the values of the layer before sent."""
        self.blocks[index].gather()
        self.begin(index - 1)

    def divided_tensors(self) -> list:
        """All that is divided."""
        blocks = (*self.blocks, self.rest)
        return [tensor for block in blocks for *_, bucket in block.buckets for tensor in bucket]

    def begin(self, index: int):
        """Begins to gather a layer's values, if there is such a layer."""
        if 0 <= index < len(self.blocks):
            self.blocks[index].begin()

    @contextlib.contextmanager
    def passing(self):
        """Context manager for forward and backward passes."""
        if not self.is_divided:
            yield
            return
        every = *self.blocks, self.rest
        for block in every:
            block.show()
        try:
            self.rest.gather()
            yield
            for block in every:
                block.free()
        finally:
            for block in every:
                block.hide()

    def gather(self):
        """Gathers everything, until `divide` is called."""
        if not self.is_divided:
            return
        for hook in self._hooks:
            hook.remove()
        for block in (*self.blocks, self.rest):
            block.show()
            # What is there to compute with may have fewer digits.
            block.free()
            block.gather(with_all_digits=True)
        self.blocks, self.rest, self._hooks = [], None, []

    @contextlib.contextmanager
    def whole(self, model):
        """Context manager in which all processes have all values; all of them enter it."""
        if not self.is_divided:
            yield
            return
        self.group.meet("what needs all weights: save, predict, generate or get_weights")
        self.gather()
        yield
        self.divide(model)


def needs_gradient(part) -> bool:
    """Whether a part of a layer's inputs or outputs takes part in the backward pass."""
    return isinstance(part, torch.Tensor) and part.requires_grad


def check_regularizers(variables):
    """Raises `ValueError` where a variable has a regularizer."""
    for variable in variables:
        if variable.regularizer is not None:
            raise ValueError(
                "shard='parameters' needs weights without a regularizer, which reads all of them "
                "after the forward pass: use the optimizer's weight_decay. Received: "
                f"{variable.regularizer!r} of {variable.path}"
            )


def check(step):
    """Raises `ValueError` where passes would not be the same in all processes."""
    if step.micro_batch_size == "auto":
        raise ValueError(
            "shard='parameters' needs micro_batch_size=<a number> or None: memory may run out in "
            "one process alone. Received: micro_batch_size='auto'"
        )
    if step.jit_compile is True:
        raise ValueError(
            "shard='parameters' needs jit_compile=False or 'auto': layers run one by one, each "
            "with its parameters gathered. Received: jit_compile=True"
        )
    if unchanged is None:
        raise NotImplementedError(
            "shard='parameters' needs PyTorch's torch.autograd._unsafe_preserve_version_counter. "
            f"Received: PyTorch {torch.__version__}"
        )
