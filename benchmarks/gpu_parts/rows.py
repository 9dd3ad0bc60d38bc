"""Where a part's results go: one JSON object a line, as each is known."""

import contextlib
import json
import pathlib
import statistics
import time
import traceback


class Rows:
    """Adds rows to `gpu.jsonl`; a side that fails is a row too, and does not stop the others."""

    def __init__(self, part, out, device, small, seconds):
        self.part, self.out = part, pathlib.Path(out)
        self.device, self.small = device, small
        self.end = time.monotonic() + seconds

    def seconds_left(self):
        """Until the part is killed."""
        return self.end - time.monotonic()

    def add(self, name, **values):
        row = {"part": self.part, "row": name, **{k: rounded(v) for k, v in values.items()}}
        with open(self.out / "gpu.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    @contextlib.contextmanager
    def side(self, name):
        """Makes an exception this side's row."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.add(name, failed=text.replace("|", "/")[:300])
        free_memory(self.device)

    def earlier(self, part, name):
        """A row of an earlier part, or an empty one."""
        with open(self.out / "gpu.jsonl") as file:
            found = [json.loads(line) for line in file]
        return next((r for r in found if (r["part"], r["row"]) == (part, name)), {})


def rounded(value):
    """Four digits are more than a measurement has."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def free_memory(device):
    if device == "cuda":
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()


def measure(function, device, repeats=20, seconds=2.0):
    """Median milliseconds and peak bytes of a call, above what is allocated before it."""
    from harness import Clock

    if device == "cuda":
        import torch

        function()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    function()
    clock = Clock(device)
    clock.tick()
    function()
    clock.tick()
    one = clock.seconds()[0]
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    repeats = max(3, min(repeats, int(seconds / max(one, 1e-6))))
    clock = Clock(device)
    for _ in range(repeats):
        clock.tick()
        function()
    clock.tick()
    return 1e3 * statistics.median(clock.seconds()), peak
