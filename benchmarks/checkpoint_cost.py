"""What a checkpoint costs: how much longer steps take that write one, for 100 steps a checkpoint.

    python benchmarks/checkpoint_cost.py            # shape L of train_step.py
    python benchmarks/checkpoint_cost.py GPT2 --device cuda

The steps in which a checkpoint is copied, or written beside, are compared with the others of the
same run: two runs differ by more than a checkpoint costs.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import harness
import keras
import train_step

from keras_llm import callbacks

WARM_UP = 5


class StepTimes(keras.callbacks.Callback):
    """The seconds of each step, and whether a checkpoint was copied or written in it."""

    reads_logs_when_they_are_computed = True

    def __init__(self, every: int):
        super().__init__()
        self.every, self.steps, self.began = every, [], None

    def on_train_batch_begin(self, batch, logs=None):
        now, is_writing = time.perf_counter(), is_busy()
        if self.began is not None:
            # This callback acts before the one that writes: at the end of the step it was copied.
            was_due = batch % self.every == 0
            self.steps.append((now - self.began[0], self.began[1] or is_writing or was_due))
        self.began = now, is_writing


def is_busy():
    """Whether a checkpoint is being written."""
    return any(thread.name == "checkpoint" for thread in threading.enumerate())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="L", choices=train_step.SHAPES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--every", type=int, default=15, help="steps between two checkpoints")
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--directory", default=None, help="where to write; the disk matters")
    args = parser.parse_args()
    job = train_step.make_job(args.shape, args.device, ["metrics"], args.every * args.checkpoints)
    model = train_step.our_model(job)
    folder = tempfile.mkdtemp(dir=args.directory)
    checkpoint = callbacks.TrainingCheckpoint(folder, every_steps=args.every)
    times = StepTimes(args.every)
    model.fit(train_step.batches(job), verbose=0, shuffle=False, callbacks=[times, checkpoint])
    newest = max(Path(folder).glob("step_*"))
    size = sum(file.stat().st_size for file in newest.iterdir())
    shutil.rmtree(folder)

    steps = times.steps[WARM_UP:]
    plain = statistics.median(seconds for seconds, is_touched in steps if not is_touched)
    touched = [seconds for seconds, is_touched in steps if is_touched]
    extra = (sum(touched) - plain * len(touched)) / args.checkpoints
    print(harness.machine())
    print(f"{args.shape}: a checkpoint of {size / 1e6:.0f} MB every {args.every} steps")
    print(f"a step without one: {1e3 * plain:.1f} ms; steps beside one: {len(touched)}")
    print(f"a checkpoint adds {1e3 * extra:.0f} ms: {extra / plain:.1%} of 1 step")
    print(f"of 100 steps: {extra / plain / 100:.2%}")


if __name__ == "__main__":
    main()
