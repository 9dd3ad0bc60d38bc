"""The processes of a `torch.distributed` group."""

import contextlib
import sys

import torch
import torch.distributed as dist

from keras_llm.distribution.base import ProcessLostError, World
from keras_llm.distribution.torch.notices import Notices


class ProcessGroup(World):
    """`World` on `torch.distributed`.

    Every collective operation is called by all processes, in the same order. A process that fails
    says why in the group's store and leaves the group; the others then find a connection closed,
    and raise `ProcessLostError` with its reason.

    Args:
        store: The group's store; None where it is not known, as with a group that the user made.
    """

    def __init__(self, store=None):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.notices, self.lost = Notices(store, self.rank, self.size), ""
        # A group that a user has made may be for GPUs alone.
        self._host = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
        # Collective operations so far.
        self._calls = 0

    # Collective operations

    def sum_of(self, numbers):
        """The sums of numbers of the host over all processes."""
        values = torch.tensor(numbers, dtype=torch.float64)
        self._call(dist.all_reduce, values, group=self._host)
        return values.tolist()

    @torch.no_grad()
    def sum_(self, tensors):
        """Replaces tensors by their sums, in one operation for each dtype."""
        for alike in of_one_kind(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            self._call(dist.all_reduce, flat, group=self._group(flat))
            scatter(flat, alike)

    @torch.no_grad()
    def copy_from_first_(self, tensors):
        """Replaces tensors by those of the first process."""
        for tensor in tensors:
            values = tensor.detach().contiguous()
            self._call(dist.broadcast, values, 0, group=self._group(values))
            if values.data_ptr() != tensor.data_ptr():
                tensor.copy_(values)

    def texts_of(self, text):
        """The texts of all processes, by rank."""
        encoded = text.encode()
        longest = int(max(self.numbers_of(len(encoded))))
        own = torch.tensor(list(encoded.ljust(longest, b"\0")), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.size)]
        self._call(dist.all_gather, every, own, group=self._host)
        return [bytes(one.tolist()).rstrip(b"\0").decode() for one in every]

    def numbers_of(self, number: float) -> list[float]:
        """The numbers of all processes, by rank."""
        return self.sum_of([number if rank == self.rank else 0.0 for rank in range(self.size)])

    def bytes_of_first(self, data):
        """The bytes of the first process."""
        count = int(self.of_first([len(data)])[0])
        values = torch.empty(count, dtype=torch.uint8)
        if self.is_first:
            values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._call(dist.broadcast, values, 0, group=self._host)
        return values.numpy().tobytes()

    def tensors_of(self, tensor) -> list:
        """The tensors of all processes, which are of one shape, by rank."""
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        self._call(dist.all_gather, every, tensor.contiguous(), group=self._group(tensor))
        return every

    def start_sum(self, flat, owner=None):
        """Begins to sum a tensor in place, for all or for one process; returns what waits for it.

        In the other processes than an owner the tensor's values are of no use afterwards.
        """
        if owner is None:
            work = self._call(dist.all_reduce, flat, group=self._group(flat), async_op=True)
        else:
            work = self._call(dist.reduce, flat, owner, group=self._group(flat), async_op=True)
        return lambda: self._checked(work.wait)

    def start_copy(self, flat, owner, channel=None):
        """Begins to replace a tensor by that of its owner; returns what waits for it.

        Args:
            channel: What `new_channel` returned: the order of operations is one of that channel.
        """
        group = channel or self._group(flat)
        work = self._call(dist.broadcast, flat, owner, group=group, async_op=True)
        return lambda: self._checked(work.wait)

    def new_channel(self):
        """Connections of their own, for operations whose order is not that of the others."""
        return dist.new_group()

    @torch.no_grad()
    def copy_from_owners_(self, buckets):
        """Replaces tensors by those of their owners; the next bucket is on its way meanwhile.

        Args:
            buckets: Owners, each with a list of tensors of one dtype and device.
        """
        waiting = None
        for owner, tensors in [*buckets, (None, [])]:
            begun = None
            if tensors:
                flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
                begun = flat, tensors, owner, self.start_copy(flat, owner)
            if waiting is not None:
                flat, tensors, owner, wait = waiting
                wait()
                if owner != self.rank:
                    scatter(flat, tensors)
            waiting = begun

    def _group(self, tensor):
        return None if tensor.is_cuda else self._host

    def _call(self, operation, *arguments, **named):
        self._calls += 1
        if self.lost:
            raise ProcessLostError(self.lost)
        return self._checked(operation, *arguments, **named)

    def _checked(self, operation, *arguments, **named):
        try:
            return operation(*arguments, **named)
        except RuntimeError as error:
            # A process that is about to say why may close its connections first.
            self.lost = self.notices.reason(1.0) or (
                "Another process of the run has ended without an error of its own: it was killed, "
                f"or its machine has failed. This is process {self.rank} of {self.size}"
            )
            raise ProcessLostError(self.lost) from error

    # Notices

    def meet(self, what):
        """Waits until all processes have come to some work, and says so if that takes long."""
        self.notices.meet(what)

    def first_alone(self, what):
        """Context manager whose body the first process runs before the others do."""
        return self.notices.first_alone(what)

    @contextlib.contextmanager
    def together(self):
        """Context manager for work that all processes do: if one fails, the others end too."""
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise

    def tell(self, error: BaseException) -> None:
        """Says in the store why this process cannot go on."""
        self.notices.tell(error, self._calls)

    def reason(self):
        """Why another process cannot go on; empty where none has said so."""
        return self.notices.reason()

    def _leave(self, error):
        """Tells the others, and closes the connections unless all have failed alike."""
        if self.lost or self.notices.store is None:
            return
        self.tell(error)
        if not isinstance(error, ProcessLostError) and self.notices.all_have_failed():
            # After as many operations: the group is whole, and a script may catch the error.
            return
        self.lost = f"This process has left the group: {type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def of_one_kind(tensors) -> list[list]:
    """The tensors in lists of one dtype and device each."""
    kinds = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(kinds.values())


def scatter(flat, tensors):
    """Copies the parts of a flat tensor into tensors."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


_current: ProcessGroup | None = None


def current() -> ProcessGroup | None:
    """The group of this process, one that a user has made included; None where there is none."""
    global _current
    if not dist.is_available() or not dist.is_initialized():
        # One that was left because a process has failed still says so.
        return _current if _current is not None and _current.lost else None
    place = dist.get_rank(), dist.get_world_size()
    if _current is None or place != (_current.rank, _current.size):
        _current = ProcessGroup()
    return _current


def join(store, rank: int, size: int) -> ProcessGroup:
    """Makes the group of all processes, and leaves it when Python exits."""
    global _current
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size
    )
    _current = ProcessGroup(dist.PrefixStore("keras_llm", store))
    # An error that ends the program, wherever it was raised, is told to the others.
    shown = sys.excepthook

    def excepthook(kind, error, traceback):
        _current.tell(error)
        shown(kind, error, traceback)

    sys.excepthook = excepthook
    return _current


def leave() -> None:
    """Leaves the group."""
    if dist.is_initialized():
        dist.destroy_process_group()
