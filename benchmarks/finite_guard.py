"""What `FiniteGuard` costs: `fit` with it, as by default, and with `FiniteGuard(skip=False)`.

    python benchmarks/finite_guard.py           # shapes S and L
    python benchmarks/finite_guard.py S --rounds 5

The model, the data and the steps are those of train_step.py. Both sides take turns inside of one
process, an epoch each, because their difference is smaller than that of two processes; processes
are repeated.
"""

import argparse
import json
import statistics

import harness
import train_step

EPOCHS = {"S": 20, "L": 8, "tiny": 4}
SIDES = ("off", "on")


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
    print("| shape | ms a step without | with | cost |\n| --- | --- | --- | --- |")
    for shape in args.shapes or ["S", "L"]:
        options = (shape, "--device", args.device)
        runs = [harness.one_run(__file__, "both", *options) for _ in range(args.rounds)]
        off, on = (statistics.median(s for run in runs for s in run[side]) for side in SIDES)
        cells = f"{1e3 * off:.2f} | {1e3 * on:.2f} | {100 * (on / off - 1):+.2f} %"
        print(f"| {shape} | {cells} |", flush=True)


def run(shape, device):
    """Seconds of the steps of each side."""
    from keras_llm import callbacks

    job = train_step.make_job(shape, device, ["metrics"])
    model, seconds = train_step.our_model(job), {side: [] for side in SIDES}
    for epoch in range(2 * EPOCHS[shape]):
        side = SIDES[(epoch + epoch // 2) % 2]
        job.clock = harness.Clock(device)
        guard = callbacks.FiniteGuard(skip=side == "on")
        model.fit(train_step.batches(job), verbose=0, shuffle=False, callbacks=[guard])
        job.clock.tick()
        seconds[side] += job.clock.seconds()[train_step.WARM_UP :]
    return seconds


if __name__ == "__main__":
    main()
