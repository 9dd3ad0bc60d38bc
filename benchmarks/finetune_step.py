"""One step of fine-tuning a model of transformers: the Trainer, TRL's, a loop by hand, `fit`.

    python benchmarks/finetune_step.py [--rounds 3] [--steps 20]

A GPT-2 of 30 M random parameters with its vocabulary of 50,257, batches of 4 x 128 random tokens of
which all count, AdamW without decay at a constant rate, gradients clipped to norm 1, no dropout,
float32, two threads. `trainer` logs every tenth step, `trainer, no logging` never; `sft` is TRL's
SFTTrainer with the trainer's arguments, without the gradient checkpointing and bfloat16 that it
turns on by itself, on the same rows, already tokenized; `ours` has perplexity and accuracy, and
`ours, compiled` also `compile(jit_compile=True)`, compiled in steps that are not counted. The last
column is the loss of a held-out batch after the same steps on the same batches in the same
order. It is the same on all sides because all rows are full: for GPT-2, the Trainer divides by 128
labels a row where 127 count, one factor for all steps, which clipping and AdamW take out. Guide 9
has rows of several lengths.
"""

import argparse
import json
import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "2")

import harness

WIDTH, LAYERS, HEADS, VOCAB, BATCH, LENGTH = 384, 6, 6, 50_257, 4, 128
RATE, WARM_UP = 1e-4, 3
SIDES = ["trainer", "trainer, no logging", "sft", "by hand", "ours", "ours, compiled"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(RUNS[args.side.split(",")[0]](args.side, Job(args.steps))))
        return
    print(harness.machine())
    results = harness.measure(__file__, args.sides, args.rounds, "--steps", args.steps)
    first, *_ = results.values()
    print(f"| side | ms a step | / {args.sides[0]} | memory MB | / {args.sides[0]} | loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    for side, result in results.items():
        print(
            f"| {side} | {1e3 * result['seconds']:.0f} | {result['seconds'] / first['seconds']:.2f}"
            f" | {result['bytes'] / 2**20:.0f} | {result['bytes'] / first['bytes']:.2f}"
            f" | {result['loss']:.6f} |"
        )


class Job:
    """The model, its batches, and the clock and the memory of a side."""

    def __init__(self, steps):
        import torch
        import transformers

        torch.manual_seed(0)
        sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **no_dropout))
        *self.batches, self.held_out = torch.randint(VOCAB, (WARM_UP + steps + 1, BATCH, LENGTH))
        self.clock = harness.Clock("cpu")

    def count_memory(self):
        """Begins to look for the peak above the weights and two moments of each."""
        self.start = harness.resident_bytes() + 8 * self.hf.num_parameters()
        harness.forget_peak()

    def result(self):
        """Seconds of each step but the first, the peak, and the held-out batch's loss."""
        import torch
        import torch.nn.functional as F

        self.clock.tick()
        peak = harness.resident_bytes("VmHWM") - self.start
        with torch.no_grad():
            logits = self.hf.eval()(self.held_out).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), self.held_out[:, 1:].flatten()).item()
        return {"seconds": self.clock.seconds()[WARM_UP:], "bytes": peak, "loss": loss}


def by_hand(side, job):
    import torch

    job.count_memory()
    optimizer = torch.optim.AdamW(job.hf.parameters(), lr=RATE, weight_decay=0.0)
    job.hf.train()
    for ids in job.batches:
        job.clock.tick()
        optimizer.zero_grad()
        loss = job.hf(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(job.hf.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return job.result()


def trainer(side, job):
    import transformers

    rows = [{"input_ids": row, "labels": row} for ids in job.batches for row in ids]
    job.count_memory()
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(folder, **trainer_arguments(side, job))
        transformers.Trainer(
            model=job.hf, args=args, train_dataset=rows, callbacks=[ticking(job)]
        ).train()
    return job.result()


def sft(side, job):
    import datasets
    import tokenizers
    import transformers
    import trl

    rows = [{"input_ids": row, "labels": row} for ids in job.batches for row in ids.tolist()]
    rows = datasets.Dataset.from_list(rows)
    # It reads no text here, but the trainer asks for one.
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, "<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    job.count_memory()
    with tempfile.TemporaryDirectory() as folder:
        args = trl.SFTConfig(
            folder,
            **trainer_arguments(side, job),
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trl.SFTTrainer(
            model=job.hf,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[ticking(job)],
        ).train()
    return job.result()


def trainer_arguments(side, job):
    return {
        "max_steps": len(job.batches),
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_strategy": "no" if "no logging" in side else "steps",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }


def ticking(job):
    import transformers

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            job.clock.tick()

    return Clock()


def ours(side, job):
    import torch

    from keras_llm import losses, metrics, models, optimizers

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            for ids in job.batches:
                job.clock.tick()
                yield {"input_ids": ids, "labels": ids}

        def __len__(self):
            return len(job.batches)

    model = models.from_transformers(job.hf)
    model.compile(
        optimizer=optimizers.AdamW(RATE, weight_decay=0.0, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()],
        jit_compile="compiled" in side,
    )
    job.count_memory()
    model.fit(torch.utils.data.DataLoader(Batches(), batch_size=None), verbose=0)
    return job.result()


RUNS = {"trainer": trainer, "sft": sft, "by hand": by_hand, "ours": ours}

if __name__ == "__main__":
    main()
