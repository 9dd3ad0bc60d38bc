"""The training step of GPT-2 124M's shape: `fit`, an expert's compiled loop, the Trainer."""

import pathlib
import subprocess
import sys
import time

import harness

SIDES = ["ours+metrics+jit", "expert", "ours+metrics+jit+ranks", "ours+metrics+auto", "trainer"]
ROUNDS, SIDE_LIMIT = 2, 110
SCRIPT = str(pathlib.Path(harness.__file__).with_name("train_step.py"))
# Dense bfloat16 products of an H100 or H200 (SXM), from their data sheets.
PEAK_TFLOPS = 989.4


def run(rows):
    shape = "tiny" if rows.small else "GPT2"
    runs = {side: [] for side in SIDES}
    longest = 0.0
    for number in range(1 if rows.small else ROUNDS):
        for side in SIDES[:3] if rows.small else SIDES:
            # The first round is more important than the second; the numbers below, than both.
            if number and rows.seconds_left() < longest + 5:
                continue
            begin = time.monotonic()
            label = f"{side}, round {number + 1}"
            with rows.side(label):
                limit = min(SIDE_LIMIT, rows.seconds_left() - 5)
                result = harness.one_run(
                    SCRIPT, side, shape, "--device", rows.device, timeout=limit
                )
                runs[side].append(result)
                milliseconds = 1e3 * harness.medians([result])["seconds"]
                longest = max(longest, time.monotonic() - begin)
                rows.add(label, ms=milliseconds, process_s=time.monotonic() - begin)
    report(rows, shape, {side: harness.medians(each) for side, each in runs.items() if each})


def warm(rows):
    """Has every side compile what it needs, all at once, into the cache that `run` finds."""
    commands = [
        [sys.executable, SCRIPT, "--side", side, "GPT2", "--device", rows.device] for side in SIDES
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for process in [subprocess.Popen(command, **quiet) for command in commands]:
        process.wait()


def report(rows, shape, results):
    from train_step import SHAPES

    vocab, d_model, layers, _, batch, length = SHAPES[shape]
    tokens = batch * length
    flops = tokens * flops_per_token(vocab, d_model, layers, length)
    product = rows.earlier("machine", "bfloat16 product").get("TFLOPs")
    expert = results.get("expert", {}).get("seconds")
    for side, result in results.items():
        seconds = result["seconds"]
        tflops = 1e-12 * flops / seconds
        rows.add(
            side,
            ms=1e3 * seconds,
            tokens_per_second=round(tokens / seconds),
            TFLOPs=tflops,
            of_peak=tflops / PEAK_TFLOPS,
            of_measured_product=tflops / product if product else None,
            speed_over_expert=expert / seconds if expert else None,
            peak_GB=1e-9 * result["bytes"],
        )


def flops_per_token(vocab, d_model, layers, length):
    """6 for each parameter of a product, and attention's two products over the whole length."""
    d_ff = 64 * -(-d_model * 8 // 3 // 64)
    parameters = vocab * d_model + layers * (4 * d_model**2 + 3 * d_model * d_ff)
    return 6 * parameters + 12 * layers * d_model * length
