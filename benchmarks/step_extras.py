"""What `FiniteGuard` and the log points of `history.steps` cost: `fit` with them, and without.

    python benchmarks/step_extras.py           # shapes S and L
    python benchmarks/step_extras.py S --rounds 5

The model, the data and the steps are those of train_step.py. All sides take turns inside of one
process, an epoch each, because their differences are smaller than those of two processes;
processes are repeated.
"""

import argparse
import json
import statistics

import harness
import train_step

EPOCHS = {"S": 4, "L": 2, "tiny": 4}
# Without the guard, without log points, with both: an epoch each, in two orders.
SIDES = ("no guard", "no log", "both")
ORDER = ("both", "no guard", "no log", "no log", "no guard", "both")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", choices=[[], *EPOCHS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args.shapes[0], args.device)))
        return
    print(harness.machine())
    print("| shape | ms a step | the guard costs | log points cost |\n| --- | --- | --- | --- |")
    for shape in args.shapes or ["S", "L"]:
        options = (shape, "--device", args.device)
        runs = [harness.one_run(__file__, "all", *options) for _ in range(args.rounds)]
        # A log point is in one step of ten: it shows in a mean, not in a median.
        mean = {side: trimmed_mean([s for run in runs for s in run[side]]) for side in SIDES}
        costs = (f"{100 * (mean['both'] / mean[side] - 1):+.2f} %" for side in SIDES[:2])
        print(f"| {shape} | {1e3 * mean['both']:.2f} | {' | '.join(costs)} |", flush=True)


def trimmed_mean(values):
    """The mean without the slowest and fastest fortieth, which other processes have made."""
    cut = len(values) // 40
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def run(shape, device):
    """Seconds of the steps of each side."""
    from keras_llm import callbacks
    from keras_llm.training import step_log

    every = step_log.EVERY
    job = train_step.make_job(shape, device, ["metrics"])
    model, seconds = train_step.our_model(job), {side: [] for side in SIDES}
    for side in ORDER * max(1, EPOCHS[shape] // 2):
        job.clock = harness.Clock(device)
        step_log.EVERY = 10**9 if side == "no log" else every
        guard = callbacks.FiniteGuard(skip=side != "no guard")
        model.fit(train_step.batches(job), verbose=0, shuffle=False, callbacks=[guard])
        job.clock.tick()
        seconds[side] += job.clock.seconds()[train_step.WARM_UP :]
    return seconds


if __name__ == "__main__":
    main()
