"""Starts processes as torchrun does."""

import os
import socket
import subprocess
import sys
import time

from tests.programs import Program

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d"]


def environment(**more):
    """One thread a process: they share the machine."""
    here = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST",)}
    return here | {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"} | more


def command(size, script, *arguments):
    """The command that starts so many processes."""
    where = ["--rdzv-endpoint=localhost:0", f"--nproc-per-node={size}"]
    return [*LAUNCHER, *where, str(script), *map(str, arguments)]


def torchrun(size, script, *arguments, timeout=300, **more):
    """Runs a script by torchrun in so many processes; returns what they printed."""
    done = subprocess.run(
        command(size, script, *arguments),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def start(size, script, *arguments, **more):
    """Starts processes with what torchrun tells them, and nobody who ends those that are left.

    They are forked from one that has imported what they import (`tests/programs.py`).
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [
        Program(
            script,
            *arguments,
            **({"RANK": str(rank), "LOCAL_RANK": str(rank), **launch} if size > 1 else {}),
            **more,
        )
        for rank in range(size)
    ]


def launch(size, script, *arguments, timeout=300, **more):
    """What `torchrun` returns, sooner; one that fails ends the others."""
    programs, end = start(size, script, *arguments, **more), time.monotonic() + timeout
    codes = [None]
    try:
        while None in codes and not any(codes) and time.monotonic() < end:
            time.sleep(0.02)
            codes = [program.poll() for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert not any(codes), [program.errors[-3000:] for program in programs]
    assert None not in codes, "time is up"
    return "".join(program.printed for program in programs)
