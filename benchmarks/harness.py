"""One harness for all tables: a fresh process per side, sides interleaved, medians and ratios."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys

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
            command = [sys.executable, script, "--side", side, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
            results[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {
        side: {
            "seconds": statistics.median(s for run in runs for s in run["seconds"]),
            "bytes": statistics.median(run.get("bytes", 0) for run in runs),
        }
        for side, runs in results.items()
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


def resident_bytes(which="VmRSS"):
    """Memory of this process now, or at its peak (`VmHWM`)."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def forget_peak():
    """Makes the peak start from what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
