"""A step that is applied to its own result again and again, in one compiled loop."""

import keras
from keras import ops

from keras_llm.backend.sizes import rounded_up

if keras.backend.backend() == "tensorflow":
    from keras_llm.backend.tensorflow.compiled import compiled
else:
    from keras_llm.backend.jax.compiled import compiled

__all__ = ["Repeated", "compiled", "size_of"]


class Repeated:
    """`state, goes_on = step(state)`, again and again, without Python between two steps.

    It is compiled once for each shape of the state.

    Args:
        step: From a nested structure of tensors to one of the same shapes, and to a boolean scalar:
            whether it is to be applied again.
        layers: All layers that it calls, built.
        example: A function from sizes (of the batch, then of other dimensions that may differ from
            call to call) to a state of these sizes. Only PyTorch needs it.
        jit_compile: Whether TensorFlow compiles by XLA. JAX always compiles. PyTorch never does:
            few shapes of states would share a compilation.
    """

    def __init__(self, step, layers, example, jit_compile):
        def loop(state, most):
            def again(state, goes_on, taken):
                return ops.logical_and(goes_on, taken < most)

            def body(state, goes_on, taken):
                return *step(state), taken + 1

            begin = state, ops.convert_to_tensor(True), ops.zeros((), "int32")
            return ops.while_loop(again, body, begin)[:2]

        self.loop = compiled(loop, layers, jit_compile)

    def with_weights(self, state, rows: int, steps: int):
        """The loop with the weights of now, and whether it takes states of any size.

        Args:
            state: A state like those that it will be given.
            rows: The size of the batch.
            steps: At most how many steps it will make altogether.

        Returns:
            `(state, most) -> (state, goes_on)`: at most `most` steps, and whether more are wanted.
            The state that it is given must not be used any more. And a boolean: if it is false,
            something is compiled for each size of a state.
        """

        def run(state, most):
            state, goes_on = self.loop(state, ops.convert_to_tensor(most, "int32"))
            return state, bool(goes_on)

        return run, False


def size_of(length: int) -> int:
    """The length of which inputs are to be made: padded, they need fewer compiled functions."""
    return rounded_up(length)
