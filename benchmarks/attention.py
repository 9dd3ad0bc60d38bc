"""Padding and packed documents in a causal model, beside masks of all pairs.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Forward and backward of a `CausalBackbone` of one block with next to no feed-forward part: batch 8,
8 heads of 64. For the first three sides each row has up to half of its length in padding before the
tokens; `causal` knows of no padding: what its numbers would cost if they were right. For the last
two, documents of 1 to 400 tokens follow one another. Time is the processor's, to be read on a busy
machine too.
"""

import argparse
import itertools
import json
import os
import time

import harness

SIDES = ["mask", "moved", "causal", "mask of documents", "documents"]
LENGTHS = {512: 5, 2048: 2}  # steps a round
BATCH, HEADS, HEAD_DIM = 8, 8, 64
PAD, END = 0, 1


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
        for side, result in results.items():
            base = results["mask of documents" if "documents" in side else "mask"]
            time_ratio, memory_ratio = (result[k] / base[k] for k in ("seconds", "bytes"))
            print(
                f"| {length} | {side} | {1e3 * result['seconds']:.0f} | {time_ratio:.2f} "
                f"| {result['bytes'] / 2**20:.0f} | {memory_ratio:.2f} |",
                flush=True,
            )


def run(side, length):
    """Seconds of each step, and the peak memory above the model's own."""
    import torch

    from keras_llm.models import CausalBackbone, CausalConfig

    config = CausalConfig(
        vocab_size=256,
        d_model=HEADS * HEAD_DIM,
        num_layers=1,
        num_heads=HEADS,
        max_length=length,
        d_ff=64,
        pad_id=PAD if side == "moved" else None,
        document_end_id=END if side == "documents" else None,
    )
    backbone = CausalBackbone(config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 256, (BATCH, length), generator=generator)
    if "documents" in side:
        lengths = torch.randint(1, 400, (BATCH * length,), generator=generator)
        ends = lengths.cumsum(0)
        ids.view(-1)[ends[ends < ids.numel()]] = END
    else:
        ids[torch.arange(length) < torch.linspace(0, length // 2, BATCH)[:, None]] = PAD
    forward = masked if "mask" in side else type(backbone).__call__

    start = harness.resident_bytes()
    harness.forget_peak()
    times = [time.process_time()]
    for _ in range(1 + LENGTHS[length]):
        backbone.zero_grad()
        forward(backbone, ids)[ids != PAD].square().sum().backward()
        times.append(time.process_time())
    seconds = [b - a for a, b in itertools.pairwise(times)]
    return {"seconds": seconds[1:], "bytes": harness.resident_bytes("VmHWM") - start}


def masked(backbone, ids):
    """The same numbers with padding where it stands, and with documents."""
    from keras import ops

    from keras_llm.layers.attention import causal_mask

    length = ids.shape[1]
    mask = causal_mask(length, length) & (ids != PAD)[:, None, None, :]
    documents = (ids == END).cumsum(1) - (ids == END).long()
    mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    cos_sin = backbone.rotary(ops.arange(length))
    x = backbone.token_embedding(ids)
    for block in backbone.blocks:
        x = block(x, cos_sin, attention_mask=mask)
    return backbone.norm(x)


if __name__ == "__main__":
    main()
