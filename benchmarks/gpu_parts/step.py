"""The training step of GPT-2 124M's shape: `fit`, an expert's compiled loop, the Trainer."""

import concurrent.futures
import pathlib

import harness

SIDES = ["ours+metrics+jit", "expert", "ours+metrics+auto", "trainer"]
ROUNDS = 2
SCRIPT = str(pathlib.Path(harness.__file__).with_name("train_step.py"))
# Dense bfloat16 products of an H100 or H200 (SXM), from their data sheets.
PEAK_TFLOPS = 989.4


def run(rows):
    shape = "tiny" if rows.small else "GPT2"
    arguments = (shape, "--device", rows.device)
    results, failed = {side: [] for side in SIDES}, {}

    def one(side):
        try:
            return harness.one_run(SCRIPT, side, *arguments)
        except RuntimeError as error:
            failed[side] = str(error)
            print(error, flush=True)
            return None

    if not rows.small:
        # All compile at once, into a cache that the runs below find filled.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(one, SIDES))
    for number in range(1 if rows.small else ROUNDS):
        for side in SIDES:
            if side in failed:
                continue
            result = one(side)
            if result is not None:
                results[side].append(result)
                milliseconds = 1e3 * harness.medians([result])["seconds"]
                rows.add(f"{side}, round {number + 1}", ms=milliseconds)
    for side, error in failed.items():
        rows.add(side, failed=" ".join(error.split())[-300:].replace("|", "/"))
    report(rows, shape, {side: harness.medians(runs) for side, runs in results.items() if runs})


def report(rows, shape, results):
    from train_step import SHAPES

    vocab, d_model, layers, heads, batch, length = SHAPES[shape]
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
