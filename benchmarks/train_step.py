"""One training step: `fit` of keras_llm beside the loop by hand, stock Keras and the Trainer.

    python benchmarks/train_step.py            # every shape, every side
    python benchmarks/train_step.py L --sides plain ours+metrics
    python benchmarks/train_step.py GPT2 --device cuda --sides expert ours+metrics+jit

AdamW, gradients clipped to norm 1, a tenth of the labels ignored; float32, on a GPU bfloat16 with
float32 weights. `plain` is the loop that people write, `expert` has the fused optimizer and
`torch.compile`, `jit` is `jit_compile=True`, `auto` the default; `ranks` is the step of one of
several processes, in a group that has this one alone. Compilers run in steps that are not counted.
"""

import argparse
import dataclasses
import json
import os
import time

import harness

# vocab, d_model, layers, heads, batch, length
SHAPES = {
    "S": (256, 64, 8, 4, 2, 32),
    "M": (8192, 128, 4, 4, 8, 128),
    "L": (50257, 256, 2, 4, 8, 256),
    "XL": (128256, 512, 2, 8, 8, 512),
    "GPT2": (50304, 768, 12, 12, 16, 1024),
    "tiny": (64, 16, 1, 2, 2, 8),
}
STEPS = {"S": 60, "M": 20, "L": 6, "XL": 3, "GPT2": 30, "tiny": 3}
CPU_SHAPES = ["S", "M", "L", "XL"]
SIDES = [
    "plain",
    "expert",
    "expert+linear",
    "keras",
    "keras+metrics",
    "trainer",
    "ours",
    "ours+metrics",
    "ours+metrics+jit",
    "ours+metrics+jax",
    "ours+metrics+ranks",
]
WARM_UP = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES])
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        if args.side.endswith("+jax"):
            os.environ["KERAS_BACKEND"] = "jax"
        print(json.dumps(run(args.side, args.shapes[0], args.device)))
        return
    print(harness.machine())
    for shape in args.shapes or CPU_SHAPES:
        options = (shape, "--device", args.device)
        results = harness.measure(__file__, args.sides, args.rounds, *options)
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


@dataclasses.dataclass
class Job:
    """What a side does: the model's sizes, one batch in the host's memory, so many steps."""

    sizes: tuple
    ids: object
    labels: object
    steps: int
    device: str
    options: list

    def __post_init__(self):
        self.on_gpu = self.device == "cuda"
        self.clock = harness.Clock(self.device)

    def count_memory(self, parameters):
        """Begins to look for the peak; on a CPU, above the weights and two moments of each."""
        if not self.on_gpu:
            self.start = harness.resident_bytes() + 8 * parameters
            harness.forget_peak()

    def result(self):
        """Seconds of each step but the first, and the peak: on a GPU, of all that it holds."""
        self.clock.tick()
        if self.on_gpu:
            import torch

            peak = torch.cuda.max_memory_allocated()
        else:
            peak = harness.resident_bytes("VmHWM") - self.start
        return {"seconds": self.clock.seconds()[WARM_UP:], "bytes": peak}


def run(side, shape, device="cpu"):
    """Seconds of each step, and the peak memory."""
    kind, *options = side.split("+")
    return RUNS[kind](make_job(shape, device, options))


def make_job(shape, device, options=(), steps=None):
    import torch

    vocab, d_model, layers, heads, batch, length = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocab, (batch, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -100
    batch = [ids[:, :-1].contiguous(), labels]
    if device == "cuda":
        batch = [x.pin_memory() for x in batch]
    sizes = (vocab, d_model, layers, heads, length)
    return Job(sizes, *batch, WARM_UP + (steps or STEPS[shape]), device, options)


def by_hand(job, expert=False):
    import torch
    import torch.nn.functional as F
    from torch_model import Transformer

    if expert:
        torch.set_float32_matmul_precision("high")
    model = Transformer(*job.sizes).to(job.device)
    job.count_memory(sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=expert or None)
    criterion = torch.nn.CrossEntropyLoss(ignore_index=-100)

    def loss_of(ids, labels):
        with torch.autocast(job.device, torch.bfloat16, enabled=job.on_gpu):
            if "linear" in job.options:
                hidden, table = model.hidden(ids).flatten(0, 1), model.embedding.weight
                return F.linear_cross_entropy(hidden, table, labels.flatten(), ignore_index=-100)
            logits = model(ids)
            return criterion(logits.view(-1, logits.size(-1)), labels.view(-1))

    forward = torch.compile(loss_of) if expert else loss_of
    for _ in range(job.steps):
        job.clock.tick()
        ids, labels = (x.to(job.device, non_blocking=True) for x in (job.ids, job.labels))
        optimizer.zero_grad()
        loss = forward(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not expert:
            loss.item()
    return job.result()


def expert(job):
    return by_hand(job, expert=True)


def batches(job, at_step=lambda step: None):
    """The job's steps as `fit` reads them; ticks at each, and calls `at_step`."""
    import torch

    class Again(torch.utils.data.IterableDataset):
        def __iter__(self):
            for step in range(job.steps):
                # Not in a callback: one that acts between batches has the layers looked at.
                at_step(step)
                job.clock.tick()
                yield job.ids, job.labels

        def __len__(self):
            return job.steps

    return torch.utils.data.DataLoader(Again(), batch_size=None)


def fit(model, job):
    job.count_memory(model.count_params())
    model.fit(batches(job), verbose=0, shuffle=False)
    return job.result()


def ours(job):
    return (fit_on_jax if "jax" in job.options else fit)(our_model(job), job)


def fit_on_jax(model, job):
    """A second `fit`, by the number of its steps: batches are read before steps have ended."""
    fit(model, job)
    job.steps *= 5
    start = time.perf_counter()
    peak = fit(model, job)["bytes"]
    return {"seconds": [(time.perf_counter() - start) / job.steps], "bytes": peak}


def our_model(job):
    from keras_llm import losses, models, optimizers
    from keras_llm import metrics as all_metrics

    if "ranks" in job.options:
        make_group_of_one(job)
    vocab, d_model, layers, heads, length = job.sizes
    dtype = "mixed_bfloat16" if job.on_gpu else None
    model = models.CausalTransformer(vocab, d_model, layers, heads, length, dtype=dtype)
    model.compile(
        optimizer=optimizers.AdamW(1e-4, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-100),
        metrics=[all_metrics.Perplexity(), all_metrics.MaskedTokenAccuracy()]
        if "metrics" in job.options
        else None,
        jit_compile="auto" if {"auto", "jax"} & {*job.options} else "jit" in job.options,
    )
    return model


def make_group_of_one(job):
    """Has `compile` make the step of one of several processes: alone, a process has another."""
    import torch.distributed as dist

    from keras_llm.training import token_model
    from keras_llm.training.torch.process_step import ProcessStep

    backend = "cpu:gloo,cuda:nccl" if job.on_gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    token_model.make_step = ProcessStep


def stock_keras(job):
    import keras

    from keras_llm import models  # the same layers, in a plain keras.Model

    vocab, d_model, layers, heads, length = job.sizes
    whole = models.CausalTransformer(vocab, d_model, layers, heads, length)
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, whole.head(whole.backbone(inputs)))
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100),
        metrics=["sparse_categorical_crossentropy", "accuracy"]
        if "metrics" in job.options
        else None,
    )
    return fit(model, job)


def trainer(job):
    import tempfile

    import transformers

    vocab, d_model, layers, heads, length = job.sizes
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

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            job.clock.tick()

    # The Trainer shifts labels itself: its rows carry the id after the last one too.
    rows = [
        {"input_ids": row, "labels": row.clone().masked_fill(label == -100, -100)}
        for row, label in zip(job.ids, job.labels, strict=True)
    ]
    job.count_memory(sum(p.numel() for p in model.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder,
            max_steps=job.steps,
            per_device_train_batch_size=len(rows),
            learning_rate=1e-4,
            max_grad_norm=1.0,
            logging_steps=10**6,
            save_strategy="no",
            report_to=[],
            optim="adamw_torch_fused" if job.on_gpu else "adamw_torch",
            use_cpu=not job.on_gpu,
            bf16=job.on_gpu,
            torch_compile=job.on_gpu,
            disable_tqdm=True,
        )
        transformers.Trainer(
            model=model, args=args, train_dataset=rows * job.steps, callbacks=[Clock()]
        ).train()
    return job.result()


RUNS = {
    "plain": by_hand,
    "expert": expert,
    "keras": stock_keras,
    "trainer": trainer,
    "ours": ours,
}

if __name__ == "__main__":
    main()
