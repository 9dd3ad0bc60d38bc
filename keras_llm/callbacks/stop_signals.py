"""Ctrl-C and SIGTERM: the step is finished first."""

import os
import signal
import threading
from collections.abc import Callable

FIRST = b"\nThe run ends after this step. Once more, and it stops at once.\n"


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a call; a second one does what it did before.

    Signals reach the main thread only, and only there they can be handled.

    Args:
        stop: Called with the error that the run is to end with.
    """

    def __init__(self, stop: Callable[[BaseException], None]):
        self.stop, self._before = stop, {}

    def install(self) -> None:
        """Handles the signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            # What was installed outside of Python could not be put back.
            if before is not None:
                self._before[number] = before
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Puts back what was there before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number, frame):
        self.restore()
        os.write(2, FIRST)
        self.stop(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
