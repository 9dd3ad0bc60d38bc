"""One harness for all tables: a fresh process per side, sides interleaved, medians and ratios."""

import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time

# Before anything loads Keras.
os.environ.setdefault("KERAS_BACKEND", "torch")


def measure(script, sides, rounds, *arguments):
    """Runs `script --side NAME arguments` for each side in turn, `rounds` times.

    A side prints one line of JSON: `{"seconds": [one number a step], "bytes": peak}`.

    Returns:
        For each side the median seconds and the median bytes, over all rounds.
    """
    results = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            results[side].append(one_run(script, side, *arguments))
    return {side: medians(runs) for side, runs in results.items()}


def one_run(script, side, *arguments, timeout=None):
    """What one side prints, from a fresh process."""
    command = [sys.executable, script, "--side", side, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(runs):
    """The median seconds, the median bytes and that of any other number, over a side's rounds."""
    others = runs[0].keys() - {"seconds", "bytes"}
    return {
        "seconds": statistics.median(s for run in runs for s in run["seconds"]),
        "bytes": statistics.median(run.get("bytes", 0) for run in runs),
        **{name: statistics.median(run[name] for run in runs) for name in sorted(others)},
    }


def machine():
    """Where and when, and the versions that matter."""
    import keras
    import torch

    model = "unknown CPU"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((s.split(":")[1].strip() for s in lines if "model name" in s), model)
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores of {model}, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, keras {keras.__version__}"
    )


class Clock:
    """When the steps begin: on a GPU by its own time line, without waiting for it."""

    def __init__(self, device, of_host=time.perf_counter):
        self.device, self.of_host, self.ticks = device, of_host, []

    def tick(self):
        if self.device == "cpu":
            self.ticks.append(self.of_host())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.ticks.append(event)

    def seconds(self):
        """From each tick to the next."""
        pairs = itertools.pairwise(self.ticks)
        if self.device == "cpu":
            return [b - a for a, b in pairs]
        self.ticks[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairs]


def resident_bytes(which="VmRSS"):
    """Memory of this process now, or at its peak (`VmHWM`)."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def forget_peak():
    """Makes the peak start from what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
