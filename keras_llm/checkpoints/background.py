"""One thread that writes while training goes on."""

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs one function at a time on a thread of its own.

    The thread is no daemon: Python waits for it at its exit.
    """

    def __init__(self):
        self._thread, self._error = None, None

    def is_busy(self) -> bool:
        """Whether a function runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, function: Callable, *arguments) -> None:
        """Runs a function, after the one that runs."""
        self.wait()
        self._thread = threading.Thread(
            target=self._run, args=(function, *arguments), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits for the function that runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_error(self) -> BaseException | None:
        """What the last function raised, once."""
        error, self._error = self._error, None
        return error

    def _run(self, function, *arguments):
        try:
            function(*arguments)
        except BaseException as error:
            # A thread's traceback goes nowhere; who waits for the work is told.
            self._error = error
