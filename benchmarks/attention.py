"""Padding and packed documents in a causal model, beside masks of all pairs.

    OMP_NUM_THREADS=1 python benchmarks/attention.py
    python benchmarks/gpu.py --parts packed         # on a GPU, at length 8192

Forward and backward of a `CausalBackbone` of one block with next to no feed-forward part: batch 8,
8 heads of 64. For the first three sides each row has up to half of its length in padding before the
tokens; `causal` knows of no padding: what its numbers would cost if they were right. For the last
two, documents of 1 to 400 tokens follow one another. Time is the processor's, to be read on a busy
machine too. On a GPU there are also PyTorch's kernels for sequences of many lengths, called
directly and told the lengths beforehand: `varlen`, `varlen of documents`.
"""

import argparse
import contextlib
import inspect
import json
import os
import time
from unittest import mock

import harness

SIDES = ["mask", "moved", "causal", "mask of documents", "documents"]
GPU_SIDES = [*SIDES[:3], "varlen", *SIDES[3:], "varlen of documents"]
LENGTHS = {512: 5, 2048: 2}  # steps a round
GPU_STEPS = 12
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


def run(side, length, device="cpu"):
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
    on_gpu = device == "cuda"
    backbone = CausalBackbone(config, dtype="mixed_bfloat16" if on_gpu else None)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 256, (BATCH, length), generator=generator)
    if "documents" in side:
        lengths = torch.randint(1, 400, (BATCH * length,), generator=generator)
        ends = lengths.cumsum(0)
        ids.view(-1)[ends[ends < ids.numel()]] = END
    else:
        ids[torch.arange(length) < torch.linspace(0, length // 2, BATCH)[:, None]] = PAD
    ids = ids.to(device)
    forward = masked if "mask" in side else type(backbone).__call__
    attend = varlen_attend(ids) if "varlen" in side else None

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        start = harness.resident_bytes()
        harness.forget_peak()
    clock = harness.Clock(device, time.process_time)
    clock.tick()
    for _ in range(1 + (GPU_STEPS if on_gpu else LENGTHS.get(length, 1))):
        backbone.zero_grad()
        with (
            mock.patch("keras_llm.layers.attention.attend", attend)
            if attend
            else contextlib.nullcontext()
        ):
            hidden = forward(backbone, ids)
        hidden[ids != PAD].square().sum().backward()
        clock.tick()
    seconds = clock.seconds()[1:]
    peak = torch.cuda.max_memory_allocated() if on_gpu else harness.resident_bytes("VmHWM")
    return {"seconds": seconds, "bytes": peak - start}


def varlen_attend(ids):
    """`attend` by `varlen_attn`; what says where sequences begin is made once."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    kept = (ids != PAD).flatten().nonzero().squeeze(1)
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, 0] = True
    begins[:, 1:] |= (ids[:, :-1] == END) | (ids[:, :-1] == PAD) & (ids[:, 1:] != PAD)
    starts = begins.flatten()[kept].nonzero().squeeze(1)
    bounds = torch.cat([starts, starts.new_tensor([len(kept)])]).int()
    longest = int(bounds.diff().max())
    causal = {"window_size": (-1, 0)}
    if "is_causal" in inspect.signature(varlen_attn).parameters:
        causal = {"is_causal": True}

    def attend(query, key, value, *_, **__):
        flat = [x.flatten(0, 1) for x in (query, key, value)]
        if len(kept) < len(flat[0]):
            flat = [x.index_select(0, kept) for x in flat]
        output = varlen_attn(*flat, bounds, bounds, longest, longest, **causal)
        if len(kept) < ids.numel():
            zeros = output.new_zeros(ids.numel(), *output.shape[1:])
            output = zeros.index_copy(0, kept, output)
        return output.view(query.shape)

    return attend


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
