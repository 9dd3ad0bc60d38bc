"""What `jit_compile="auto"` costs and saves over a whole run, and how long first epochs take.

    python benchmarks/compile_policy.py lengths     # pairs of many lengths: auto beside off
    python benchmarks/compile_policy.py pays        # three kinds of runs where compiling pays
    KERAS_BACKEND=jax python benchmarks/compile_policy.py epochs    # seconds of each epoch

One thread. Sides run in fresh processes, one after the other.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time

import harness

os.environ.setdefault("OMP_NUM_THREADS", "1")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["lengths", "pays", "epochs"])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=60.0, help="of a run of `pays`")
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args)))
        return
    print(harness.machine())
    sides = {
        "lengths": ["off", "auto", "off", "auto"],
        "epochs": ["auto"],
        "pays": [f"{kind}+{jit}" for kind in RUNS for jit in ("off", "auto")],
    }[args.part]
    for side in sides:
        command = [sys.executable, __file__, args.part, "--side", side]
        command += ["--epochs", str(args.epochs), "--minutes", str(args.minutes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        print(side, done.stdout.strip().splitlines()[-1], flush=True)


def run(args):
    """Seconds of a run, what was decided, and for `pays` the time of a late step."""
    if args.part == "pays":
        kind, jit = args.side.split("+")
        return long_run(RUNS[kind], jit, 60 * args.minutes)
    import keras

    from keras_llm import data, losses, metrics, models, optimizers

    pairs = words(3_000)
    tokenizer = data.train_tokenizer((" ".join(p) for p in pairs), vocab_size=600)
    train = data.seq2seq(pairs, tokenizer, batch_size=16, shuffle=True, seed=0)
    keras.utils.set_random_seed(0)
    model = models.Seq2SeqTransformer(
        tokenizer.vocab_size, d_model=128, num_layers=2, num_heads=4, max_length=128
    )
    model.compile(
        optimizers.AdamW(1e-3, global_clipnorm=1.0),
        losses.MaskedSparseCategoricalCrossentropy(tokenizer.pad_id),
        metrics=[metrics.Perplexity()],
        jit_compile="auto" if args.side == "auto" else False,
    )
    ends = [time.perf_counter()]
    ended = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    model.fit(train, epochs=args.epochs, verbose=0, callbacks=[ended])
    epochs = [round(b - a, 1) for a, b in itertools.pairwise(ends)]
    decided = model.step.describe().compiling
    return {"seconds": round(ends[-1] - ends[0], 1), "epochs": epochs, "compiling": decided}


def words(count):
    """Pairs of 2 to 17 made-up words, the second with the letters of each word reversed."""
    import random

    random.seed(0)
    known = ["".join(random.choices(LETTERS, k=random.randint(2, 7))) for _ in range(400)]
    sources = [random.choices(known, k=random.randint(2, 17)) for _ in range(count)]
    return [(" ".join(s), " ".join(word[::-1] for word in s)) for s in sources]


def causal(vocab, d_model, layers, length, dropout):
    from keras_llm import models

    return models.CausalTransformer(
        vocab, d_model, layers, 4, max_length=length, dropout=dropout
    ), (vocab, length)


# Vocabulary, d_model, layers, length, dropout, batch.
RUNS = {
    "small": (256, 64, 8, 32, 0.0, 4),
    "dropout": (1_000, 128, 4, 64, 0.1, 8),
    "middle": (4_096, 192, 4, 128, 0.0, 8),
}


def long_run(sizes, jit, seconds):
    """A `fit` that says it lasts this long, broken off once a compiled graph has shown itself."""
    import keras
    import numpy as np

    from keras_llm import losses, metrics, optimizers

    *sizes, batch = sizes
    keras.utils.set_random_seed(0)
    model, (vocab, length) = causal(*sizes)
    model.compile(
        optimizers.AdamW(1e-3, global_clipnorm=1.0),
        losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity()],
        jit_compile="auto" if jit == "auto" else False,
    )
    ids = np.random.default_rng(0).integers(0, vocab, (batch, length + 1))
    x, y = ids[:, :-1], ids[:, 1:]
    times = []

    class Same(keras.utils.PyDataset):
        def __len__(self):
            return int(seconds / step)

        def __getitem__(self, index):
            times.append(time.perf_counter())
            return x, y

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            if time.perf_counter() - self.began > (90 if jit == "auto" else 20):
                self.model.stop_training = True

    began = time.perf_counter()
    for _ in range(30):
        model.train_on_batch(x, y)
    step = (time.perf_counter() - began) / 30
    model.fit(Same(), verbose=0, callbacks=[Stop()])
    late = np.diff(times[len(times) // 2 :])
    return {"ms a late step": 1e3 * float(np.median(late)), "compiling": model.step.describe()[-1]}


if __name__ == "__main__":
    main()
