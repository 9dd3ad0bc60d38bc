"""Greedy decoding on one thread: `generate` of keras_llm beside that of Hugging Face transformers.

    python benchmarks/decoding.py                    # every side, batch 1 and 8
    python benchmarks/decoding.py 8 --sides ours "Hugging Face" --rounds 5

Llamas of 6 layers of width 256 with random weights, vocabulary 8,000, prompts of 16 tokens and 128
new ones, float32. The first call, in which functions are traced and compiled, is a column of its
own. Times are the process's CPU seconds on one core: other programs change them less than those of
a clock.
"""

import argparse
import json
import os
import time
from statistics import median

import harness

VOCAB, D_MODEL, LAYERS, HEADS, D_FF = 8_000, 256, 6, 8, 704
PROMPT, NEW = 16, 128
SIDES = ["Hugging Face", "Hugging Face, static cache", "ours", "ours, JAX", "ours, TensorFlow"]
CALLS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args.side, args.batches[0])))
        return
    print(harness.machine())
    for batch in args.batches:
        runs = {side: [] for side in args.sides}
        for _ in range(args.rounds):
            for side in args.sides:
                runs[side].append(harness.one_run(__file__, side, batch))
        print(f"\nbatch {batch}\n| side | ms a token | / {args.sides[0]} | first call, s |")
        print("| --- | --- | --- | --- |")
        for side in args.sides:
            seconds, first = (
                median(run[key] for run in runs[side]) for key in ("seconds", "first")
            )
            both = zip(runs[side], runs[args.sides[0]], strict=True)
            ratio = median(mine["seconds"] / theirs["seconds"] for mine, theirs in both)
            print(f"| {side} | {1e3 * seconds:.2f} | {ratio:.2f} | {first:.1f} |")


def run(side, batch):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    generate = MAKERS.get(side, ours)(side, batch)
    seconds = []
    while len(seconds) <= CALLS:
        begin = time.process_time()
        rows = generate()
        seconds.append(time.process_time() - begin)
        assert len(rows) == batch and len(rows[0]) == PROMPT + NEW
    return {"seconds": median(seconds[1:]) / NEW, "first": seconds[0]}


def prompts(batch):
    import numpy as np

    return np.random.default_rng(0).integers(0, VOCAB, (batch, PROMPT))


def ours(side, batch):
    backend = {"ours, JAX": "jax", "ours, TensorFlow": "tensorflow"}.get(side, "torch")
    os.environ["KERAS_BACKEND"] = backend
    from keras_llm import models

    if backend == "torch":
        import torch

        torch.set_num_threads(1)
    model = models.CausalTransformer(VOCAB, D_MODEL, LAYERS, HEADS, d_ff=D_FF)
    ids = prompts(batch)
    return lambda: model.generate(ids, max_new_tokens=NEW)


def hugging_face(side, batch):
    import torch
    import transformers

    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=D_FF,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor(prompts(batch))
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    options |= {"cache_implementation": "static"} if "static" in side else {}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


MAKERS = {side: hugging_face for side in SIDES if side.startswith("Hugging Face")}


if __name__ == "__main__":
    main()
