"""Programs as `python PROGRAM` runs them, each in a process of its own.

The processes are forked from one that has imported what all of them import, which takes longest.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["keras_llm", "transformers"])


def main(path, arguments, folder, log):
    """Is the program: in its folder, with its arguments, and with a file for what it prints."""
    with open(log, "wb") as printed, open(f"{log}.errors", "wb") as errors:
        os.dup2(printed.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    os.chdir(folder)
    sys.argv = [path, *arguments]
    # `python PROGRAM` finds modules in the program's folder first.
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def run_program(path, arguments, folder, log):
    """How a program ended, what it has printed, and what it has written as errors."""
    process = CONTEXT.Process(target=main, args=(str(path), arguments, str(folder), str(log)))
    process.start()
    process.join(300)
    process.kill()
    process.join()
    return process.exitcode, *(Path(name).read_text("utf-8") for name in (log, f"{log}.errors"))
