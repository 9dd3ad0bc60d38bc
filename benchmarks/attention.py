"""Padding among the tokens of a causal model: moved behind them, beside a mask of all pairs.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Forward and backward of a `CausalBackbone` of one block with next to no feed-forward part: batch 8,
8 heads of 64, each row with up to half of its length in padding before the tokens. `causal` knows
of no padding: what its numbers would cost if they were right. Time is the processor's, to be read
on a busy machine too.
"""

import argparse
import itertools
import json
import os
import time

import harness

SIDES = ["mask", "moved", "causal"]
LENGTHS = {512: 5, 2048: 2}  # steps a round
BATCH, HEADS, HEAD_DIM = 8, 8, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", nargs="*", type=int, help="512 or 2048; both if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args.side, args.lengths[0])))
        return
    # What is freed goes back to the system at once: resident memory is then memory in use.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    print(harness.machine())
    print("\n| length | side | ms | / mask | memory MB | / mask |")
    print("| --- | --- | --- | --- | --- | --- |")
    for length in args.lengths or LENGTHS:
        results = harness.measure(__file__, SIDES, args.rounds, length)
        base = results["mask"]
        for side, result in results.items():
            time_ratio, memory_ratio = (result[k] / base[k] for k in ("seconds", "bytes"))
            print(
                f"| {length} | {side} | {1e3 * result['seconds']:.0f} | {time_ratio:.2f} "
                f"| {result['bytes'] / 2**20:.0f} | {memory_ratio:.2f} |",
                flush=True,
            )


def run(side, length):
    """Seconds of each step, and the peak memory above the model's own."""
    import torch

    from keras_llm.models import CausalBackbone

    pad_id = 0 if side == "moved" else None
    backbone = CausalBackbone(
        256, HEADS * HEAD_DIM, 1, HEADS, max_length=length, d_ff=64, pad_id=pad_id
    )
    ids = torch.randint(1, 256, (BATCH, length), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(length) < torch.linspace(0, length // 2, BATCH)[:, None]] = 0
    forward = masked if side == "mask" else type(backbone).__call__

    start = harness.resident_bytes()
    harness.forget_peak()
    times = [time.process_time()]
    for _ in range(1 + LENGTHS[length]):
        backbone.zero_grad()
        forward(backbone, ids)[ids != 0].square().sum().backward()
        times.append(time.process_time())
    seconds = [b - a for a, b in itertools.pairwise(times)]
    return {"seconds": seconds[1:], "bytes": harness.resident_bytes("VmHWM") - start}


def masked(backbone, ids):
    """The same numbers with padding where it stands."""
    from keras import ops

    from keras_llm.layers.attention import causal_mask

    length = ids.shape[1]
    mask = causal_mask(length, length) & (ids != 0)[:, None, None, :]
    rotation = backbone.rotary(ops.arange(length))
    x = backbone.token_embedding(ids)
    for block in backbone.blocks:
        x = block(x, rotation, attention_mask=mask)
    return backbone.norm(x)


if __name__ == "__main__":
    main()
