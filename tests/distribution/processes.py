"""Starts processes as torchrun does."""

import os
import subprocess
import sys

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d"]


def environment(**more):
    """One thread a process: they share the machine."""
    here = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST",)}
    return here | {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"} | more


def command(size, script, *arguments):
    """The command that starts so many processes."""
    where = ["--rdzv-endpoint=localhost:0", f"--nproc-per-node={size}"]
    return [*LAUNCHER, *where, str(script), *map(str, arguments)]


def launch(size, script, *arguments, timeout=300, **more):
    """Runs a script in so many processes; returns what they printed."""
    done = subprocess.run(
        command(size, script, *arguments),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout
