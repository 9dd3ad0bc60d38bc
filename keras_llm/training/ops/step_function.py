"""Keras's compiled function of a step, kept right when variables are frozen or thawed."""

import time
from collections.abc import Callable


class StepFunction:
    """A train or test function that is made anew for each set of trainable variables.

    A compiled function trains the variables that were trainable when it was made, and Keras keeps
    one of them. This one looks at every call which variables are trainable now, and takes, or
    makes, the function for those. On JAX it also sorts Keras's state accordingly.

    Args:
        step: The `CompiledStep`, which counts what is compiled.
        make: Makes Keras's function; called without arguments.
    """

    def __init__(self, step, make: Callable):
        self.step, self.make = step, make
        self.functions = {}
        self.variables = step.model.variables
        self.trainable, self.others = self.split()

    def __call__(self, *state_and_iterator):
        """Keras's arguments and results: on JAX the state and an iterator, else the iterator."""
        *state, iterator = state_and_iterator
        marks = tuple(variable.trainable for variable in self.variables)
        if marks not in self.functions:
            self.functions[marks] = self.make()
        if state:
            state = [self.sorted(state[0])]
        traces, began = self.step.traces, time.perf_counter()
        results = self.functions[marks](*state, iterator)
        if self.step.traces > traces:
            self.step.count_compilation(time.perf_counter() - began)
        return results

    def split(self):
        """The variables that are trainable now, and the others."""
        model = self.step.model
        return model.trainable_variables, model.non_trainable_variables

    def sorted(self, state):
        """JAX's state `(trainable, others, ...)` with each value where its variable is now."""
        trainable, others = self.trainable, self.others
        self.trainable, self.others = self.split()
        if same(trainable, self.trainable) or len(trainable) != len(state[0]):
            return state
        values = {
            id(variable): value
            for variables, part in ((trainable, state[0]), (others, state[1]))
            for variable, value in zip(variables, part, strict=True)
        }
        parts = ([values[id(v)] for v in part] for part in (self.trainable, self.others))
        return (*parts, *state[2:])


def same(left, right) -> bool:
    """Whether two lists hold the same objects."""
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
