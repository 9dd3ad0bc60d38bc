"""What `FiniteGuard` and the log points of `history.steps` take of a step, on a CPU.

    python benchmarks/step_extras.py           # shapes S and L

Both are small beside the noise of a step, so that two runs, with and without, do not tell them
apart. On a CPU every operation is over when its call returns: here the seconds inside of their own
methods are summed, and divided by the seconds of all steps. The model, the data and the steps are
those of train_step.py.
"""

import argparse
import time

import harness
import train_step

STEPS = {"S": 60, "L": 10, "tiny": 30}


class Stopwatch:
    """Sums the seconds inside of some methods, those of nested calls once."""

    def __init__(self, *methods):
        self.seconds, self.depth = 0.0, 0
        for owner, name in methods:
            setattr(owner, name, self.timed(getattr(owner, name)))

    def timed(self, method):
        def call(*arguments, **named):
            began, self.depth = time.perf_counter(), self.depth + 1
            try:
                return method(*arguments, **named)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - began

        return call


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", choices=[[], *STEPS])
    args = parser.parse_args()
    from keras_llm import callbacks
    from keras_llm.training.step_log import StepLog
    from keras_llm.training.torch.update_guard import UpdateGuard

    hooks = ("on_train_batch_end", "on_epoch_end")
    guard = Stopwatch(
        *((UpdateGuard, name) for name in ("begin_batch", "end_batch", "decide")),
        *((callbacks.FiniteGuard, name) for name in hooks),
    )
    log = Stopwatch(*((StepLog, name) for name in ("go_on", "count", "end_epoch")))
    print(harness.machine())
    print("| shape | ms a step | the guard | log points |\n| --- | --- | --- | --- |")
    for shape in args.shapes or ["S", "L"]:
        job = train_step.make_job(shape, "cpu", ["metrics"], STEPS[shape])
        model = train_step.our_model(job)
        # What is compiled and traced comes first.
        model.fit(train_step.batches(job), verbose=0, shuffle=False, steps=4)
        guard.seconds = log.seconds = 0.0
        began = time.perf_counter()
        model.fit(train_step.batches(job), verbose=0, shuffle=False)
        seconds = time.perf_counter() - began
        parts = (f"{100 * watch.seconds / seconds:.3f} %" for watch in (guard, log))
        steps = STEPS[shape] + train_step.WARM_UP
        print(f"| {shape} | {1e3 * seconds / steps:.1f} | {' | '.join(parts)} |", flush=True)


if __name__ == "__main__":
    main()
