"""One training step: `fit` of keras_llm beside the loop by hand, stock Keras and the Trainer.

    python benchmarks/train_step.py            # every shape, every side
    python benchmarks/train_step.py L --sides plain ours+metrics

AdamW, gradients clipped to norm 1, a tenth of the labels ignored, float32. `plain` is the loop that
people write, `expert` has the fused optimizer and `torch.compile`, `jit` is `jit_compile=True`.
Compilers run in steps that are not counted.
"""

import argparse
import itertools
import json
import time

import harness

# vocab, d_model, layers, heads, batch, length
SHAPES = {
    "S": (256, 64, 8, 4, 2, 32),
    "M": (8192, 128, 4, 4, 8, 128),
    "L": (50257, 256, 2, 4, 8, 256),
    "XL": (128256, 512, 2, 8, 8, 512),
}
STEPS = {"S": 60, "M": 20, "L": 6, "XL": 3}
SIDES = [
    "plain",
    "expert",
    "keras",
    "keras+metrics",
    "trainer",
    "ours",
    "ours+metrics",
    "ours+metrics+jit",
]
WARM_UP = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES])
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args.side, args.shapes[0])))
        return
    print(harness.machine())
    for shape in args.shapes or SHAPES:
        results = harness.measure(__file__, args.sides, args.rounds, shape)
        print(f"\n{shape}: vocab, d_model, layers, heads, batch, length = {SHAPES[shape]}")
        print("| side | ms a step | / plain | / expert | memory MB | / plain |")
        print("| --- | --- | --- | --- | --- | --- |")
        for side, result in results.items():
            cells = [side, f"{1e3 * result['seconds']:.1f}"]
            for base in ("plain", "expert"):
                known = base in results
                cells.append(f"{result['seconds'] / results[base]['seconds']:.2f}" if known else "")
            cells.append(f"{result['bytes'] / 2**20:.0f}")
            known = "plain" in results and results["plain"]["bytes"] > 0
            cells.append(f"{result['bytes'] / results['plain']['bytes']:.2f}" if known else "")
            print("| " + " | ".join(cells) + " |", flush=True)


def run(side, shape):
    """Seconds of each step, and the peak memory above weights and optimizer state."""
    import torch

    vocab, d_model, layers, heads, batch, length = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocab, (batch, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -100
    steps = WARM_UP + STEPS[shape]
    sizes = (vocab, d_model, layers, heads, length)
    kind, *options = side.split("+")
    times, above = RUNS[kind](sizes, ids[:, :-1].contiguous(), labels, steps, options)
    seconds = [b - a for a, b in itertools.pairwise(times)]
    return {"seconds": seconds[WARM_UP:], "bytes": above}


class Memory:
    """The peak above what the weights and two moments a weight need."""

    def __init__(self, parameters):
        self.start = harness.resident_bytes() + 8 * parameters
        harness.forget_peak()

    def above(self):
        return harness.resident_bytes("VmHWM") - self.start


def by_hand(sizes, ids, labels, steps, _, expert=False):
    import torch
    from torch_model import Transformer

    model = Transformer(*sizes)
    memory = Memory(sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=expert or None)
    criterion = torch.nn.CrossEntropyLoss(ignore_index=-100)
    forward = torch.compile(model) if expert else model
    times = []
    for _ in range(steps):
        times.append(time.perf_counter())
        optimizer.zero_grad()
        logits = forward(ids)
        loss = criterion(logits.view(-1, logits.size(-1)), labels.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return [*times, time.perf_counter()], memory.above()


def expert(*arguments):
    return by_hand(*arguments, expert=True)


def fit(model, ids, labels, steps):
    """Times at which the steps of one `fit` begin."""
    import torch

    times = []

    class Again(torch.utils.data.IterableDataset):
        def __iter__(self):
            for _ in range(steps):
                # Not in a callback: one that acts between batches has the layers looked at.
                times.append(time.perf_counter())
                yield ids, labels

        def __len__(self):
            return steps

    batches = torch.utils.data.DataLoader(Again(), batch_size=None)
    memory = Memory(model.count_params())
    model.fit(batches, verbose=0, shuffle=False)
    return [*times, time.perf_counter()], memory.above()


def ours(sizes, ids, labels, steps, options):
    from keras_llm import losses, models, optimizers
    from keras_llm import metrics as all_metrics

    vocab, d_model, layers, heads, length = sizes
    model = models.CausalTransformer(vocab, d_model, layers, heads, length)
    model.compile(
        optimizer=optimizers.AdamW(1e-4, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-100),
        metrics=[all_metrics.Perplexity(), all_metrics.MaskedTokenAccuracy()]
        if "metrics" in options
        else None,
        jit_compile="jit" in options,
    )
    return fit(model, ids, labels, steps)


def stock_keras(sizes, ids, labels, steps, options):
    import keras

    from keras_llm import models  # the same layers, in a plain keras.Model

    vocab, d_model, layers, heads, length = sizes
    whole = models.CausalTransformer(vocab, d_model, layers, heads, length)
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, whole.head(whole.backbone(inputs)))
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100),
        metrics=["sparse_categorical_crossentropy", "accuracy"] if "metrics" in options else None,
    )
    return fit(model, ids, labels, steps)


def trainer(sizes, ids, labels, steps, _):
    import tempfile

    import transformers

    vocab, d_model, layers, heads, length = sizes
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=d_model,
        intermediate_size=64 * -(-d_model * 8 // 3 // 64),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            times.append(time.perf_counter())

    # The Trainer shifts labels itself: its rows carry the id after the last one too.
    rows = [
        {"input_ids": row, "labels": row.clone().masked_fill(label == -100, -100)}
        for row, label in zip(ids, labels, strict=True)
    ]
    memory = Memory(sum(p.numel() for p in model.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=len(rows),
            learning_rate=1e-4,
            max_grad_norm=1.0,
            logging_steps=10**6,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        transformers.Trainer(
            model=model, args=args, train_dataset=rows, callbacks=[Clock()]
        ).train()
    return [*times, time.perf_counter()], memory.above()


RUNS = {
    "plain": by_hand,
    "expert": expert,
    "keras": stock_keras,
    "trainer": trainer,
    "ours": ours,
}

if __name__ == "__main__":
    main()
