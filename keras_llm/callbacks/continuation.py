"""How a run goes on from a checkpoint: each part of its state is given back when `fit` is ready."""

import contextlib

from keras_llm.checkpoints.fingerprint import check_unchanged
from keras_llm.checkpoints.model_state import load_step, load_weights
from keras_llm.checkpoints.random_states import set_random_states
from keras_llm.distribution import world


class Continuation:
    """What is left to give back of a checkpoint's state; of a run that begins anew, nothing.

    Args:
        run: The `Run`.
    """

    def __init__(self, run):
        self.run, self.model = run, run.model
        self._state, self._has_weights = None, False

    def begin(self, state: dict, fingerprint: dict, where) -> str:
        """Takes a checkpoint's state, before Keras's `fit`; returns what to warn of.

        Args:
            state: What `TrainingCheckpoint` has saved.
            fingerprint: Of the run that is to go on.
            where: The checkpoint, for messages.

        Raises:
            ValueError: it is of another run, or of another version of keras_llm.
        """
        try:
            changed = check_unchanged(state["fingerprint"], fingerprint, where)
            self._has_weights = self.model.built
            if self._has_weights:
                self._load_weights(state)
            self.run.load_state_dict(state["run"])
            _ = state["best"], state["callbacks"], state["random"]["now"], state["random"]["epoch"]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{where} does not hold what this version of keras_llm writes. "
                f"Received: {type(error).__name__}: {error}"
            ) from error
        self._state = state
        return changed

    def on_train_begin(self, states) -> list[str]:
        """Gives the other callbacks their states, and a model that was not built its weights.

        Args:
            states: The `CallbackStates`.

        Returns:
            The classes of callbacks that the run has no more.
        """
        if self._state is None:
            return []
        if not self._has_weights:
            self._load_weights(self._state)
        left = states.load_state_dict(self._state["callbacks"])
        if not self._has_weights and world().size > 1:
            self.model.step.meet()
        if self.run.position.batch == 0:
            load_step(self.model, self._state["model"])
            self.end()
        return left

    def on_epoch_begin(self) -> None:
        """Goes back to the random state with which the epoch began: data may be shuffled by it."""
        if self._state is not None:
            load_step(self.model, self._state["model"])
            set_random_states(self._state["random"]["epoch"])

    def end(self) -> None:
        """Goes to the random state of the checkpoint, when data has been taken: all is given."""
        if self._state is not None:
            set_random_states(self._state["random"]["now"])
            self._state = None

    def _load_weights(self, state):
        model, step = self.model, self.model.step
        if step is not None:
            # Where its state is shared out, each process takes its part when they meet.
            step.build_whole_optimizer()
        elif not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        with contextlib.nullcontext() if step is None else step.whole_weights():
            if world().is_first:
                load_weights(model, state["model"])
