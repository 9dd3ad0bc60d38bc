"""A program for torchrun that runs programs of README and examples, on little data.

It writes, for each process, the history of every `fit` and the error that a program ended with.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (first: it joins the other processes)
import keras
import numpy as np

from keras_llm.distribution import world
from tests.programs import ROOT
from tests.readme_programs import KEEP_WEIGHTS, TEXT, blocks, smaller

SIZES = ["--d-model", "16", "--num-layers", "1"]
EXAMPLES = {
    "seq2seq.py": ["--words", "120", "--test-words", "12", *SIZES, "--verbose", "2"],
    "plain_keras.py": ["--texts", "3", "--epochs", "1"],
    "distillation.py": [
        *("--text", "my.txt", "--vocab-size", "270", "--d-model", "16"),
        *("--seq-len", "16", "--epochs", "2", "--verbose", "2"),
    ],
    "keras_hub_model.py": [
        *("--texts", "12", "--vocab-size", "300", "--hidden-dim", "16"),
        *("--num-layers", "1", "--seq-len", "32"),
    ],
}
histories = []


def recorded(fit):
    """`fit`, whose history is kept; without numbers of a clock."""

    def fitted(model, *arguments, **named):
        history = fit(model, *arguments, **named)
        kept = {k: v for k, v in history.history.items() if k != "tokens_per_second"}
        histories.append({k: [float(x) for x in values] for k, values in kept.items()})
        return history

    return fitted


def example(name):
    """An example, with arguments for little data."""
    sys.argv = [name, *EXAMPLES[name]]
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def readme(code, **names):
    """A program of README."""
    exec(compile(code, "README.md", "exec"), {"keras": keras, **names})


def another_day():
    """Two epochs, and two more of what was saved."""
    save, continue_it = blocks("Another day")
    readme(smaller(blocks("Program 1")[0]) + save)
    readme(smaller(continue_it) + KEEP_WEIGHTS)


def program_3():
    """A plain `keras.Model`."""
    x, y = np.random.default_rng(0).integers(1, 20, (2, 16, 6))
    (code,) = blocks("Program 3")
    readme(code, V=20, x=x, y=y)


PROGRAMS = {name: lambda name=name: example(name) for name in EXAMPLES}
PROGRAMS |= {"another day": another_day, "program 3": program_3}


def main():
    folder = Path(sys.argv[1])
    os.chdir(folder)
    if world().is_first:
        Path("my.tmp").write_text(TEXT)
        os.replace("my.tmp", "my.txt")
    while not Path("my.txt").exists():
        time.sleep(0.1)
    # `fit` of all models of ours ends there.
    keras.Model.fit = recorded(keras.Model.fit)
    # Its positions are others in another number of processes.
    keras.layers.Dropout.call = lambda self, inputs, training=False: inputs
    found = {}
    for name, program in PROGRAMS.items():
        keras.utils.set_random_seed(0)
        histories.clear()
        program()
        found[name] = list(histories)
    Path(f"found.{world().rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
