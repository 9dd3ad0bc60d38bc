"""Programs as `python PROGRAM` runs them, each in a process of its own.

The processes are forked from one that has imported what all of them import, which takes longest.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Program:
    """A program that has been started.

    Args:
        path: Its file.
        arguments: What follows it in the command.
        folder: The current one; None for that of this process.
        environment: More variables of the environment.
    """

    def __init__(self, path, *arguments, folder=None, **environment):
        process, logs = warm()
        file, name = tempfile.mkstemp(dir=logs)
        os.close(file)
        self.code, self.printed_path, self.errors_path = None, Path(name), Path(f"{name}.errors")
        self.number = answer(
            process,
            program=str(path),
            arguments=[str(argument) for argument in arguments],
            folder=str(folder or os.getcwd()),
            environment=os.environ | environment,
            printed=str(self.printed_path),
            errors=str(self.errors_path),
        )

    def poll(self):
        """How it has ended, as `subprocess` says it; None while it runs."""
        if self.code is None:
            self.code = answer(warm()[0], process=self.number)
        return self.code

    def wait(self, seconds=300):
        """How it ends; after so many seconds it is killed."""
        end = time.monotonic() + seconds
        try:
            while self.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            self.kill()
        return self.code

    def kill(self):
        """Ends it and all that it has started."""
        while self.poll() is None:
            os.kill(self.number, 9)
            time.sleep(0.01)
        # Its workers live on without it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, 9)

    @property
    def printed(self):
        """What it has printed."""
        return self.printed_path.read_text("utf-8")

    @property
    def errors(self):
        """What it has written as errors."""
        return self.errors_path.read_text("utf-8")


def answer(process, /, **request):
    """What the process that is forked answers."""
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@functools.cache
def warm():
    """The process that is forked, and a folder for what programs print."""
    logs = tempfile.TemporaryDirectory(prefix="programs-")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "warm.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # One thread a process: they share the machine.
        env=os.environ | {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch", "PYTHONPATH": path},
    )
    atexit.register(logs.cleanup)
    # It ends when its input does.
    atexit.register(process.communicate)
    return process, logs.name
