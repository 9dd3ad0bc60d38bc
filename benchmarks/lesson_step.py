"""The lessons' own job: an encoder-decoder as wide as BERT's vocabulary, by hand and by `fit`.

    python benchmarks/lesson_step.py [--rounds 3]

Vocabulary 30,522, d_model 512, 6 + 6 layers, 8 pairs of 64 + 64 tokens of which half are padding,
label smoothing 0.1, warm-up, gradients clipped to norm 1, float32. By hand with
`torch.nn.Transformer`, its head tied to the target's embedding like ours; `expert` has the fused
optimizer and `torch.compile`. Compilers run in steps that are not counted.
"""

import argparse
import itertools
import json
import time

import harness

VOCAB, D_MODEL, LAYERS, HEADS, D_FF, BATCH, LENGTH = 30_522, 512, 6, 8, 2_048, 8, 64
STEPS, WARM_UP = 8, 3
SIDES = ["by hand", "expert", "ours+metrics", "ours+metrics+jit"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        seconds = RUNS[args.side.split("+")[0]](args.side)
        print(json.dumps({"seconds": seconds[WARM_UP:]}))
        return
    print(harness.machine())
    results = harness.measure(__file__, args.sides, args.rounds)
    print("| side | ms a step | / by hand | / expert |\n| --- | --- | --- | --- |")
    for side, result in results.items():
        cells = [side, f"{1e3 * result['seconds']:.0f}"]
        for base in ("by hand", "expert"):
            known = base in results
            cells.append(f"{result['seconds'] / results[base]['seconds']:.2f}" if known else "")
        print("| " + " | ".join(cells) + " |")


def batch():
    """Sources, targets shifted right, targets; padding, of id 0, is at the end of half of them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(1, VOCAB, (2, BATCH, LENGTH + 1), generator=generator)
    lengths = torch.linspace(1, LENGTH, BATCH).long()
    padding = torch.arange(LENGTH) >= lengths[:, None]
    source = source[:, 1:].masked_fill(padding, 0)
    return source, target[:, :-1].masked_fill(padding, 0), target[:, 1:].masked_fill(padding, 0)


def by_hand(side):
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, D_MODEL)
            self.positions = nn.Embedding(LENGTH, D_MODEL)
            sizes = D_MODEL, HEADS, LAYERS, LAYERS, D_FF, 0.1
            self.transformer = nn.Transformer(*sizes, batch_first=True, norm_first=True)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.register_buffer("at", torch.arange(LENGTH))
            mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
            self.register_buffer("causal", mask == -torch.inf)

        def forward(self, source, target):
            embedded = (self.embedding(x) + self.positions(self.at) for x in (source, target))
            padding = source == 0
            hidden = self.transformer(
                *embedded,
                tgt_mask=self.causal,
                src_key_padding_mask=padding,
                tgt_key_padding_mask=target == 0,
                memory_key_padding_mask=padding,
                tgt_is_causal=True,
            )
            return hidden @ self.embedding.weight.T

    expert = side == "expert"
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=expert or None)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    criterion = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1)
    source, shifted, target = batch()

    def loss_of(source, shifted, target):
        logits = model(source, shifted)
        return criterion(logits.view(-1, VOCAB), target.reshape(-1))

    forward = torch.compile(loss_of) if expert else loss_of
    times, total = [], 0.0
    for _ in range(WARM_UP + STEPS):
        times.append(time.perf_counter())
        optimizer.zero_grad()
        loss = forward(source, shifted, target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
    times.append(time.perf_counter())
    return differences(times)


def ours(side):
    import torch

    from keras_llm import losses, metrics, models, optimizers, schedules

    model = models.Seq2SeqTransformer(
        VOCAB, D_MODEL, LAYERS, HEADS, LENGTH, d_ff=2 * D_FF // 3, dropout=0.1, pad_id=0
    )
    model.compile(
        optimizer=optimizers.AdamW(
            schedules.WarmupLinearDecay(5e-5, warmup_steps=100, total_steps=10_000),
            global_clipnorm=1.0,
        ),
        loss=losses.MaskedSparseCategoricalCrossentropy(0, label_smoothing=0.1),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()],
        jit_compile="jit" in side,
    )
    source, shifted, target = batch()
    times = []

    class Again(torch.utils.data.IterableDataset):
        def __iter__(self):
            for _ in range(WARM_UP + STEPS):
                times.append(time.perf_counter())
                yield {"encoder_ids": source, "decoder_ids": shifted}, target

        def __len__(self):
            return WARM_UP + STEPS

    batches = torch.utils.data.DataLoader(Again(), batch_size=None)
    model.fit(batches, verbose=0, shuffle=False)
    return differences([*times, time.perf_counter()])


def differences(times):
    return [b - a for a, b in itertools.pairwise(times)]


RUNS = {"by hand": by_hand, "expert": by_hand, "ours": ours}

if __name__ == "__main__":
    main()
