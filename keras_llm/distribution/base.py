"""The processes that train one model together, and what they tell each other."""

import contextlib


class ProcessLostError(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


class World:
    """A process alone: nobody has anything to add.

    What a model is trained on is the same whatever the number of processes: each takes its rows of
    every batch, and sums (of gradients, of tokens, of metrics) are taken over all of them. On
    PyTorch, under torchrun, `world()` returns a `torch.process_group.ProcessGroup`.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        device: What the processes compute on: `"cpu"` or `"cuda"`.
    """

    rank, size, device = 0, 1, "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def rows_of(self, count: int) -> slice:
        """The rows of this process, of a batch of so many."""
        return slice(self.rank, count, self.size)

    def sum_of(self, numbers: list[float]) -> list[float]:
        """The sums of numbers of the host over all processes."""
        return numbers

    def any_of(self, condition: bool) -> bool:
        """Whether a condition holds in one of the processes."""
        return bool(self.sum_of([float(condition)])[0])

    def texts_of(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        return [text]

    def bytes_of_first(self, data: bytes) -> bytes:
        """The bytes of the first process; what the others give is not read."""
        return data

    def of_first(self, numbers: list[float]) -> list[float]:
        """The numbers of the first process: a clock, for example, differs."""
        return self.sum_of([n if self.is_first else 0.0 for n in numbers])

    def sum_(self, tensors) -> None:
        """Replaces tensors by their sums over all processes."""

    def copy_from_first_(self, tensors) -> None:
        """Replaces tensors by those of the first process."""

    def meet(self, what: str) -> None:
        """Waits until all processes have come to some work, and says so if that takes long.

        Args:
            what: A name for the work, the same in all processes.
        """

    @contextlib.contextmanager
    def first_alone(self, what: str):
        """Context manager whose body the first process runs before the others do.

        Args:
            what: A name for the work, the same in all processes.
        """
        yield

    @contextlib.contextmanager
    def together(self):
        """Context manager for work that all processes do: if one fails, the others end too."""
        yield

    def tell(self, error: BaseException) -> None:
        """Says to the others why this process cannot go on."""

    def reason(self) -> str:
        """Why another process cannot go on; empty where none has said so."""
        return ""
