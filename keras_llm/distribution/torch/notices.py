"""What the processes of a group tell each other through its store, also when one has failed."""

import contextlib
import sys
import time

from keras_llm.distribution.base import ProcessLostError

# Seconds that a process that has failed waits for the others to fail alike.
GRACE = 3.0
# Seconds after which a process says for whom it waits.
PATIENCE = 10.0
# Between two looks at the store.
INTERVAL = 0.05


class Notices:
    """Notices of a process in its group's store, and of the others.

    Collective operations need all processes, and wait for one that does not come. The store answers
    whoever asks.

    Args:
        store: The group's store; None where it is not known, as with a group that the user made.
        rank: The number of this process.
        size: How many there are.
    """

    def __init__(self, store, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        # Failures that all processes had alike, and how often each work was done.
        self._failures, self._done = 0, {}

    # Who waits for whom

    def meet(self, what: str) -> None:
        """Waits until all processes have come to some work, and says so if that takes long."""
        if self.store is None:
            return
        number = self._number(what)
        keys = [f"met/{number}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], "1")
        end, has_told = time.monotonic() + PATIENCE, False
        while not self.store.check(keys):
            time.sleep(INTERVAL)
            if time.monotonic() < end:
                # One that has said why it ends may come yet: all write a last checkpoint.
                continue
            if reason := self.reason():
                raise ProcessLostError(reason)
            if not has_told:
                has_told = True
                missing = [str(n) for n, key in enumerate(keys) if not self.store.check([key])]
                print(
                    f"Process {self.rank} of {self.size} waits in {what} for process "
                    f"{', '.join(missing)}. All processes have to call it: is it below an `if` "
                    "that is true in some of them?",
                    file=sys.stderr,
                    flush=True,
                )

    @contextlib.contextmanager
    def first_alone(self, what: str):
        """Context manager whose body the first process runs before the others do."""
        if self.store is None:
            yield
            return
        key = f"done/{self._number(what)}"
        while self.rank > 0 and not self.store.check([key]):
            if reason := self.reason():
                raise ProcessLostError(reason)
            time.sleep(INTERVAL)
        try:
            yield
        finally:
            if self.rank == 0:
                self.store.set(key, "1")

    def _number(self, what):
        """A name for this time that some work is done."""
        self._done[what] = self._done.get(what, 0) + 1
        return f"{what}/{self._done[what]}"

    # Failures

    def tell(self, error: BaseException, operations: int) -> None:
        """Says why this process cannot go on, and after how many collective operations."""
        if self.store is not None and not isinstance(error, ProcessLostError):
            text = f"{operations} {type(error).__name__}: {error}"
            with contextlib.suppress(RuntimeError):
                self.store.set(self._key(self.rank), text[:2000])

    def all_have_failed(self) -> bool:
        """Whether all processes have failed, after as many operations, or do so shortly."""
        keys = [self._key(rank) for rank in range(self.size)]
        end = time.monotonic() + GRACE
        with contextlib.suppress(RuntimeError):
            while not self.store.check(keys):
                if time.monotonic() > end:
                    return False
                time.sleep(INTERVAL)
            if len({self.store.get(key).split()[0] for key in keys}) == 1:
                self._failures += 1
                return True
        return False

    def reason(self, seconds: float = 0.0) -> str:
        """What another process says of its end within so many seconds; empty for nothing."""
        end = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError, AttributeError):
            while True:
                for rank in range(self.size):
                    if rank != self.rank and self.store.check([self._key(rank)]):
                        why = self.store.get(self._key(rank)).decode().split(" ", 1)[1]
                        return f"Process {rank} of {self.size} has ended the run: {why}"
                if time.monotonic() >= end:
                    break
                time.sleep(INTERVAL)
        return ""

    def _key(self, rank):
        return f"failed/{self._failures}/{rank}"
