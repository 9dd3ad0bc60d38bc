"""Batches in an order that can be had again: the torch DataLoader that `fit` reads."""

import itertools
import multiprocessing
import warnings

import keras
import torch


class DataLoader(torch.utils.data.DataLoader):
    """A `torch.utils.data.DataLoader` whose position is three numbers: seed, epoch, step.

    The batches of an epoch follow from its seed and number alone, so nothing else has to be kept
    to go on where a run stopped:

        state = loader.state_dict()                 # {"seed": 0, "epoch": 2, "step": 35}
        ...
        loader.load_state_dict(state)               # the next iteration begins with that batch

    An iteration begins at the start of the current epoch (or, the first time after
    `load_state_dict`, at its step), and ends with the epoch, whose last batch moves the position
    to the next one. So an iteration that is broken off changes nothing for the next, as when
    Keras looks at a first batch to build a model.

    `state_dict` counts the batches handed out. With PyTorch those are the batches trained on, from
    the end of the first step on (before it, that look at a batch counts); with TensorFlow, and
    with JAX on a GPU, Keras fetches one ahead: there, count the steps yourself.

    `len` is the batches of a whole epoch. An epoch which resumes in its middle is shorter, which
    Keras reports as "Your input ran out of data": it then goes on with the next epoch.

    Args:
        dataset: An object with `__len__`, `__getitems__(rows)`, which gives a batch of numpy
            arrays in the structure that `fit` wants, and `fixed_length`: whether all batches
            have the same length.
        order: An object with `__len__`, `seed` and `batches(epoch)`, an iterator of the
            row numbers of each batch.
        num_workers: Processes which prepare batches; 0 prepares them in this one. They start
            afresh, so a script needs `if __name__ == "__main__":` as with any such process.
    """

    def __init__(self, dataset, order, num_workers: int = 0):
        # `fit` has shuffle=True by default, and warns that it cannot shuffle this: nobody asked.
        warnings.filterwarnings("ignore", r"`shuffle=True` was passed.*torch DataLoader")
        self._remaining = _RemainingBatches(order)
        self._step = 0
        super().__init__(
            dataset,
            batch_sampler=self._remaining,
            collate_fn=_as_tensors,
            num_workers=num_workers,
            # Not fork: array_record's threads, once they have read, make a forked process crash.
            multiprocessing_context=_start_method() if num_workers else None,
            persistent_workers=num_workers > 0,
        )

    def __iter__(self):
        # A generator, so this runs at the first batch: `fit` also makes iterators it never uses.
        epoch, first = self._remaining.epoch, self._remaining.first
        for step, batch in enumerate(super().__iter__(), first):
            if step + 1 < len(self):
                self._step = step + 1
            else:
                self._move_to(epoch + 1, 0)
            yield self._with_length_open(batch) if step == first else batch

    def state_dict(self) -> dict[str, int]:
        """The position: of all batches handed out so far, the next one is at this step."""
        return {
            "seed": self._remaining.order.seed,
            "epoch": self._remaining.epoch,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration begin at a position that `state_dict` gave.

        Raises:
            ValueError: `state` is not such a position.
        """
        if set(state) != {"seed", "epoch", "step"} or not all(
            isinstance(value, int) and value >= 0 for value in state.values()
        ):
            raise ValueError(
                "`state` must hold the non-negative integers seed, epoch and step. "
                f"Received: state={state}"
            )
        if state["step"] >= len(self):
            raise ValueError(
                f"`state` must be of this data: an epoch here has {len(self)} steps. "
                f"Received: state={state}"
            )
        self._remaining.order.seed = state["seed"]
        self._move_to(state["epoch"], state["step"])

    def _move_to(self, epoch: int, step: int) -> None:
        self._remaining.epoch = epoch
        self._remaining.first = self._step = step

    def _with_length_open(self, batch):
        # Keras takes what the shapes of two batches have in common for the shape of all.
        if self.dataset.fixed_length or keras.backend.backend() != "tensorflow":
            return batch
        return keras.tree.map_structure(lambda tensor: tensor.as_subclass(_AnyLength), batch)


class _RemainingBatches:
    """The batch sampler: those of this epoch from `first` on."""

    def __init__(self, order):
        self.order = order
        self.epoch = 0
        self.first = 0

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return itertools.islice(self.order.batches(self.epoch), self.first, None)


class _AnyLength(torch.Tensor):
    """A batch whose shape says that the next one may have another length."""

    @property
    def shape(self):
        return (self.size(0), None)


def _as_tensors(batch):
    return keras.tree.map_structure(torch.from_numpy, batch)


def _start_method() -> str:
    methods = multiprocessing.get_all_start_methods()
    return "forkserver" if "forkserver" in methods else "spawn"
