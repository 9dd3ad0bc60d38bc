"""A process that has imported what programs import first, and that is forked into each of them.

`programs.py` writes a request in each line, and reads a line for each: the number of the process
that a program runs in, or how that process has ended, null while it runs. What ends a program, an
error too, ends an interpreter here as it would elsewhere.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
from importlib.machinery import PathFinder

import numpy

# Not keras_llm: as it is imported, it joins the processes that were launched together.
IMPORTED = (
    "torch.fx.experimental.proxy_tensor",
    "keras",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)


class WithoutTensorFlow(PathFinder):
    """Finds no TensorFlow, which Keras imports, where it is installed, to train a first model."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "tensorflow" else super().find_spec(fullname, path, target)


def next_program():
    """Answers requests; returns, in a new process, what is to run in it."""
    for line in sys.stdin:
        request = json.loads(line)
        if "program" in request:
            answer = os.fork()
            if answer == 0:
                return request
        else:
            number, status = os.waitpid(request["process"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else None
        print(json.dumps(answer), flush=True)
    sys.exit()


def become(program, arguments, folder, environment, printed, errors):
    """Makes this process one that was started so."""
    os.setsid()
    for path, number in ((os.devnull, 0), (printed, 1), (errors, 2)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # A new process draws its own.
    numpy.random.seed()
    sys.argv = [program, *arguments]
    # `python PROGRAM` finds modules in the program's folder first.
    sys.path[0] = os.path.dirname(program)
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorFlow
    for name in IMPORTED:
        importlib.import_module(name)
    # What was imported is not walked by each of them; an interpreter ends as it does elsewhere.
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    become(**next_program())
