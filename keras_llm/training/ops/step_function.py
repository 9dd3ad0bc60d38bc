"""Keras's compiled function of a step, kept right when variables are frozen or thawed."""

import time
from collections.abc import Callable

import keras

from keras_llm.training.ops.empty_batches import empty_told


class StepFunction:
    """A train or test function that is made anew for each set of trainable variables.

    A compiled function trains the variables that were trainable when it was made, and skips the
    updates that were to be skipped then; Keras keeps one of them. This one looks at every call what
    is true now, and takes, or makes, the function for that. On JAX it also sorts Keras's state
    accordingly.

    Args:
        step: The `CompiledStep`, which counts what is compiled.
        make: Makes Keras's function; called without arguments.
        trains: Whether it is a train function. Then JAX's batches go into `step.held`, while
            somebody wants them.
    """

    def __init__(self, step, make: Callable, trains: bool):
        self.step, self.make, self.trains = step, make, trains
        self.variables = step.model.variables
        # Now: under a distribution Keras asks the variables, whose values are elsewhere in `fit`.
        self.functions = {self.made_for(): make()}
        # Looking for a model's variables takes as long as a small step.
        self.parts_of = {}
        # JAX's last state, and the variables that its first two parts are the values of.
        self.returned, self.parts = None, ()

    def __call__(self, *state_and_iterator):
        """Keras's arguments and results: on JAX the state and an iterator, else the iterator."""
        check_one_replica(self.step.model)
        *state, iterator = state_and_iterator
        if not self.variables:
            # TensorFlow builds a model in its first step.
            self.variables = self.step.model.variables
        if state and self.trains and self.step.held is not None:
            iterator = self.step.holding(iterator)
        key = self.made_for()
        if key not in self.functions:
            self.functions[key] = self.make()
        traces, began = self.step.traces, time.perf_counter()
        with empty_told():
            results = self.functions[key](*map(self.sorted, state), iterator)
        if self.step.traces > traces:
            self.step.count_compilation(time.perf_counter() - began)
        if state:
            self.returned, self.parts = results[1], self.parts_now()
        return results

    def made_for(self):
        """What is true of the function that is needed now."""
        return self.marks(), self.step.guard.settings if self.trains else None

    def marks(self):
        """Which variables are trainable now."""
        return tuple(variable.trainable for variable in self.variables)

    def parts_now(self):
        """The variables that are trainable now, and the others."""
        marks, model = self.marks(), self.step.model
        if marks not in self.parts_of:
            self.parts_of[marks] = model.trainable_variables, model.non_trainable_variables
        return self.parts_of[marks]

    def sorted(self, state):
        """JAX's state `(trainable, others, ...)` with each value where its variable is now.

        Any other state than the last one was made from the variables, as they are now.
        """
        if self.returned is None or state[0] is not self.returned[0]:
            return state
        now = self.parts_now()
        if now is self.parts:
            return state
        values = {
            id(variable): value
            for variables, part in zip(self.parts, state, strict=False)
            for variable, value in zip(variables, part, strict=True)
        }
        return (*([values[id(variable)] for variable in part] for part in now), *state[2:])


def check_one_replica(model):
    """Raises `RuntimeError` where TensorFlow would run a step on several devices.

    Keras goes by the strategy in which the model was made, and else by that of the call.
    """
    if keras.backend.backend() != "tensorflow":
        return
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise RuntimeError(
            "Training on several devices is not supported on the TensorFlow backend: sums over "
            f"tokens would not meet. Use one device, or JAX. Received: {replicas} replicas"
        )
