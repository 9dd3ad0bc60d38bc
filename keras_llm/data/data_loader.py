"""The torch DataLoader that `fit` reads: its position can be saved and restored."""

import contextlib
import multiprocessing
from typing import Any

import keras
import torch

from keras_llm.arguments import check_bool, check_non_negative_int, check_positive_int
from keras_llm.data.process_rows import ProcessRows, RowsOfOneProcess

# Not fork: once array_record has read, its threads make a forked process crash.
START_METHODS = multiprocessing.get_all_start_methods()
START_METHOD = "forkserver" if "forkserver" in START_METHODS else "spawn"
# What other libraries call the arguments of batches.
LOADER_NAMES = {
    "drop_last": "nothing: the last batch may be smaller, and every number is per token",
    "generator": "seed=...",
    "sampler": "shuffle=True for another order every epoch, which follows from seed",
    "collate_fn": "nothing: batches are padded already",
    "pin_memory": "nothing: the tokens of a batch are few",
    "per_device_train_batch_size": "batch_size=...",
    "per_device_eval_batch_size": "batch_size=...",
    "dataset": "the texts as the first argument",
    "train_dataset": "the texts as the first argument",
}


def check_batches(batch_size: int, shuffle: bool, seed: int, num_workers: int) -> None:
    """Checks what every loader takes, before texts are encoded, which may take minutes."""
    check_positive_int(batch_size, "batch_size")
    check_bool(shuffle, "shuffle")
    check_non_negative_int(seed, "seed")
    check_non_negative_int(num_workers, "num_workers")


class DataLoader(torch.utils.data.DataLoader):
    """A `torch.utils.data.DataLoader` that can resume: its state is its seed, epoch and step.

    The seed and the number of an epoch determine its batches, so these three numbers are all that
    has to be saved to continue an interrupted run:

        state = loader.state_dict()                 # {"seed": 0, "epoch": 2, "step": 35}
        ...
        loader.load_state_dict(state)               # the next iteration begins with that batch

    An iteration begins at the first batch of the current epoch (the first one after
    `load_state_dict` begins at the saved step). The last batch of an epoch moves the state to the
    next epoch. An iteration that stops early, as when Keras reads one batch to build a model, does
    not change where the next one begins.

    `state_dict` counts the batches that were read. On PyTorch these are the batches trained on,
    from the end of the first step on (before it, the batch that builds the model counts). On
    TensorFlow, and on JAX with a GPU, Keras reads one batch ahead: count the steps yourself there.

    `fit` of a model of keras_llm leaves the position behind the last batch that it has trained, on
    every backend: `fit(loader, steps=100)` twice reads what `fit(loader, steps=200)` reads.

    `len` is the number of batches in a whole epoch. An epoch that is resumed in its middle is
    shorter; a plain `keras.Model` then warns "Your input ran out of data" and continues with the
    next epoch.

    `fingerprint` says which data that position is of.

    The loader shuffles, not `fit`. A plain `keras.Model` warns of that: `fit(loader,
    shuffle=False)`.

    Args:
        dataset: An object with `__len__`, `__getitems__(rows)`, which gives a batch of numpy
            arrays in the structure that `fit` wants, `fixed_length`: whether all batches have
            the same length, and `fingerprint()`.
        order: An object with `__len__`, `seed`, `batches(epoch, first)`, an iterator of the row
            numbers of each batch from the first on, and `fingerprint()`.
        num_workers: Processes which prepare batches; 0 prepares them in this one. They are not
            forked, so a script needs `if __name__ == "__main__":`.

    Raises:
        ValueError: `num_workers` is not a non-negative integer.
    """

    def __init__(self, dataset, order, num_workers: int = 0):
        num_workers = check_non_negative_int(num_workers, "num_workers")
        self._remaining = _RemainingBatches(order)
        self._rows = ProcessRows(self._remaining)
        self._step, self._repeats_one = 0, False
        super().__init__(
            dataset,
            batch_sampler=self._rows,
            collate_fn=_as_tensors,
            num_workers=num_workers,
            multiprocessing_context=START_METHOD if num_workers else None,
            persistent_workers=num_workers > 0,
            # Without one, every iteration takes a number from torch's global generator.
            generator=torch.Generator(),
        )

    def __iter__(self):
        # In a generator, this runs when the first batch is asked for: `fit` makes iterators that
        # it never uses.
        epoch, first = self._remaining.epoch, self._remaining.first
        if self._repeats_one:
            rows = next(self._remaining.order.batches(epoch))
            batch = self._with_unknown_length(_as_tensors(self.dataset.__getitems__(rows)))
            for step in range(first):
                if step + 1 == len(self):
                    # Before the last one is taken: nobody may ask for another.
                    self._move_to(epoch + 1, 0)
                yield batch
            if first == len(self):
                return
        iterator = super().__iter__()
        are_cut = self._rows.are_cut
        for step, batch in enumerate(iterator, first):
            if are_cut.popleft():
                batch = RowsOfOneProcess(batch)
            if step + 1 < len(self):
                self._step = step + 1
            else:
                self._move_to(epoch + 1, 0)
            yield self._with_unknown_length(batch) if step == first else batch

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch: a dictionary of seed, epoch and step."""
        return {
            "seed": self._remaining.order.seed,
            "epoch": self._remaining.epoch,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration begin at a position that `state_dict` returned.

        Raises:
            ValueError: `state` is not such a position.
        """
        if not isinstance(state, dict) or set(state) != {"seed", "epoch", "step"}:
            raise ValueError(
                "state must be a dictionary of the non-negative integers seed, epoch and step. "
                f"Received: state={state!r:.200}"
            )
        for name, value in state.items():
            check_non_negative_int(value, f"state[{name!r}]")
        if state["step"] >= len(self):
            raise ValueError(
                f"state must be of this data: an epoch here has {len(self)} steps. "
                f"Received: state={state}"
            )
        self._remaining.order.seed = state["seed"]
        self._move_to(state["epoch"], state["step"])

    @property
    def begins_at(self) -> tuple[int, int]:
        """The epoch and the step in it of the batch that the next iteration begins with."""
        return self._remaining.epoch, self._remaining.first

    @begins_at.setter
    def begins_at(self, position: tuple[int, int]) -> None:
        self._move_to(*position)

    def continue_at(self, epoch: int, step: int) -> None:
        """Makes the next iteration one of a whole epoch of which the first batches are trained.

        In place of those it yields one batch again and again, which costs nothing: `fit` counts
        them and does not train on them.

        Args:
            epoch: The number of the epoch.
            step: How many of its batches are trained; all of them at most.
        """
        self._move_to(epoch, step)
        self._repeats_one = step > 0

    @contextlib.contextmanager
    def whole_epoch(self):
        """Context manager: an iteration begins at the first batch, and moves nothing.

        `evaluate` and `predict` iterate in it, wherever `fit` has stopped.
        """
        remaining = self._remaining
        before = remaining.epoch, remaining.first, self._step, self._repeats_one
        self._move_to(remaining.epoch, 0)
        try:
            yield
        finally:
            remaining.epoch, remaining.first, self._step, self._repeats_one = before

    @contextlib.contextmanager
    def rows_of_this_process(self):
        """Context manager: iterations that begin in it read the rows of this process only.

        Where several processes train (`torchrun`), `fit` and `evaluate` iterate in it. Otherwise
        every process gets whole batches, as a loop by hand expects.
        """
        before, self._rows.is_on = self._rows.is_on, True
        try:
            yield
        finally:
            self._rows.is_on = before

    def fingerprint(self) -> dict[str, Any]:
        """Values for JSON that tell this data and its cutting into batches from others.

        A position is of use only where they are the same: `rows`, `batch_size`, `shuffle` and,
        depending on the data, other settings; hashes of the ids are under `tokens`.
        """
        return {**self._remaining.order.fingerprint(), **self.dataset.fingerprint()}

    def _move_to(self, epoch: int, step: int) -> None:
        self._repeats_one = False
        self._remaining.epoch = epoch
        self._remaining.first = self._step = step

    def _with_unknown_length(self, batch):
        # On TensorFlow, Keras infers the shape of all batches from two of them.
        if self.dataset.fixed_length or keras.backend.backend() != "tensorflow":
            return batch
        return keras.tree.map_structure(lambda tensor: tensor.as_subclass(_AnyLength), batch)


class _RemainingBatches:
    """The batch sampler: the batches of the current epoch from `first` on."""

    def __init__(self, order):
        self.order = order
        self.epoch = 0
        self.first = 0

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return self.order.batches(self.epoch, self.first)


class _AnyLength(torch.Tensor):
    """A batch whose length is unknown, since the next one may have another."""

    @property
    def shape(self):
        return (self.size(0), None)


def _as_tensors(batch):
    return keras.tree.map_structure(torch.from_numpy, batch)
