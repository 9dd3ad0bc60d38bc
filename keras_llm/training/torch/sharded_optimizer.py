"""An optimizer whose state is divided among several processes, by variables."""

import contextlib
import weakref

import keras
import torch
from keras import ops

from keras_llm.backend.keras_private import built_with
from keras_llm.backend.torch.gradient_clipping import global_norm
from keras_llm.optimizers.optimizer import Optimizer
from keras_llm.training.torch.gradient_sum import buckets_of
from keras_llm.training.torch.optimizer_parts import (
    become,
    copy_built_with,
    gathered_state,
    part_of,
)
from keras_llm.training.torch.owners import Owners

# Of each optimizer that was built by parts, the owners.
_owners = weakref.WeakKeyDictionary()


class ShardedOptimizer:
    """The part of one process in updates that each variable's owner makes: see `distribute`.

    The optimizer is an ordinary one, which is built with the variables of this process alone.

    Args:
        group: The `ProcessGroup`.
        optimizer: A Keras optimizer.

    Raises:
        ValueError: the optimizer cannot work by parts.
    """

    def __init__(self, group, optimizer):
        check(optimizer)
        self.group, self.optimizer = group, optimizer
        self._owners = None
        # The buckets that values are sent in, and the tensors that they are made of.
        self._buckets = self._sent = None

    def owners(self, variables) -> list[int]:
        """The owner of each trainable variable."""
        if self._owners is None:
            self._owners = self.found(variables)
            _owners[self.optimizer] = self._owners
        return [self._owners.of(variable) for variable in variables]

    def found(self, variables) -> Owners:
        """Owners, those of an earlier `compile` where there was one."""
        optimizer = self.optimizer
        if not optimizer.built:
            return Owners(variables, self.group.size)
        if optimizer in _owners:
            return _owners[optimizer]
        # It has the state of all variables, of a model or a checkpoint that was loaded: where
        # nobody else has loaded it, by the first process.
        self.group.copy_from_first_([variable.value for variable in optimizer.variables])
        owners = Owners(built_with(optimizer), self.group.size)
        own = [v for v in owners.variables if owners.of(v) == self.group.rank]
        become(optimizer, part_of(optimizer, own))
        return owners

    def bytes_owned(self, variables) -> list[int]:
        """The bytes of the trainable variables that each process owns."""
        # Not kept: one process may explain a model that is changed before all of them train it.
        owners = self._owners or Owners(variables, self.group.size)
        found = [0] * self.group.size
        for variable in variables:
            found[owners.of(variable)] += variable.value.nbytes
        return found

    def is_own(self, variable) -> bool:
        """Whether this process updates a variable."""
        return self._owners.of(variable) == self.group.rank

    def build(self, variables):
        """Builds the optimizer, if it is not, with those of some variables that are its own."""
        self.owners(variables)
        if not self.optimizer.built:
            self.optimizer.build([variable for variable in variables if self.is_own(variable)])

    def build_whole(self, variables):
        """Builds the optimizer with all variables; it is taken apart when it is next used."""
        if not self.optimizer.built:
            self.optimizer.build(variables)
        elif self.optimizer in _owners:
            owners = _owners.pop(self.optimizer)
            become(self.optimizer, copy_built_with(self.optimizer, owners.variables))
        self._owners = None

    # An update

    @torch.no_grad()
    def sum_of_squares(self, tensors):
        """Of the gradients that this process has; a float64 scalar."""
        known = [tensor.grad for tensor in tensors if tensor.grad is not None]
        return global_norm(known).double().square() if known else 0.0

    def own(self, gradients, variables, norm):
        """The gradients and variables of this process, for the optimizer, which is built.

        Args:
            gradients, variables: Of all; a gradient of another process's variable is None.
            norm: The global norm of the gradients of all processes.
        """
        pairs = zip(gradients, variables, strict=True)
        pairs = [(g, v) for g, v in pairs if self.is_own(v)]
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        self.build(variables)
        limit = self.optimizer.global_clipnorm
        if limit and not isinstance(self.optimizer, Optimizer):
            # Keras's own optimizers take the norm of what they are handed. After this it is not
            # above the limit.
            known = [gradient for gradient in gradients if gradient is not None]
            torch._foreach_mul_(known, limit / norm.clamp(min=limit))
        return gradients, variables

    def count(self, skip):
        """Counts an update, unless it is skipped, in a process that has nothing to update."""
        if skip is not True:
            self.optimizer.iterations.assign_add(1)
            if skip is not False:
                number = ops.cast(skip, self.optimizer.iterations.dtype)
                self.optimizer.iterations.assign_sub(number)

    @torch.no_grad()
    def send_values(self, trained, but=()):
        """Gives all processes the values that the owners' updates have made.

        Args:
            trained: The `TrainedVariables`.
            but: Tensors whose values stay with their owners.
        """
        if self._sent != (kinds := (id(trained), len(but))):
            self._sent, but = kinds, {id(tensor) for tensor in but}
            pairs = zip(trained.tensors, self.owners(trained.variables), strict=True)
            pairs = [(tensor, owner) for tensor, owner in pairs if id(tensor) not in but]
            self._buckets = buckets_of([t for t, _ in pairs], [owner for _, owner in pairs])
        self.group.copy_from_owners_(self._buckets)

    # State

    @property
    def shared_variables(self) -> list:
        """The optimizer's variables that are the same in all processes."""
        shared = self.optimizer.iterations, self.optimizer.learning_rate
        return [variable for variable in shared if isinstance(variable, keras.Variable)]

    @contextlib.contextmanager
    def whole(self):
        """Context manager in which the first process's optimizer has the state of all variables.

        All processes enter it. The first one needs memory for all of the state meanwhile.
        """
        if not self.optimizer.built or self._owners is None:
            yield
            return
        self.group.meet("what needs all of the optimizer's state: save")
        state = gathered_state(self.group, self.optimizer, self._owners)
        if not self.group.is_first:
            yield
            return
        before = dict(vars(self.optimizer))
        become(self.optimizer, state)
        try:
            yield
        finally:
            vars(self.optimizer).clear()
            vars(self.optimizer).update(before)


def check(optimizer):
    """Raises `ValueError` where an optimizer cannot work by parts."""
    name = type(optimizer).__name__
    if hasattr(optimizer, "inner_optimizer"):
        raise ValueError(
            "keras_llm.distribute(shard=...) needs an optimizer that is not in a "
            "LossScaleOptimizer: bfloat16, unlike float16, works without one. "
            f"Received: {name}"
        )
    if optimizer.use_ema:
        raise ValueError(
            "keras_llm.distribute(shard=...) needs use_ema=False: fit would end with averages of "
            "all weights, and each process has those of its own variables only. "
            f"Received: {name}(use_ema=True)"
        )
