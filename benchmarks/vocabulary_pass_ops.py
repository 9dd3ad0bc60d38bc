"""One pass over the vocabulary on JAX and TensorFlow: `fit` with it, and with whole logits.

    KERAS_BACKEND=jax python benchmarks/vocabulary_pass_ops.py
    KERAS_BACKEND=tensorflow python benchmarks/vocabulary_pass_ops.py L

AdamW, perplexity and accuracy on, float32, compiled by XLA as Keras does by itself.
"""

import argparse
import itertools
import json
import os
import time

import harness

# vocab, d_model, layers, heads, batch, length
SHAPES = {"M": (8192, 128, 4, 4, 8, 128), "L": (50257, 256, 2, 4, 8, 256)}
STEPS = {"M": 12, "L": 4}
SIDES = ["whole", "pass"]
WARM_UP = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ignored", type=float, default=0.1, help="share of the labels")
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args.side, args.shapes[0], args.ignored)))
        return
    print(os.environ["KERAS_BACKEND"], "|", harness.machine())
    for shape in args.shapes or SHAPES:
        options = [shape, "--ignored", args.ignored]
        results = harness.measure(__file__, SIDES, args.rounds, *options)
        print(f"\n{shape}: vocab, d_model, layers, heads, batch, length = {SHAPES[shape]}")
        print("| side | ms a step | / whole | memory MB | / whole |")
        print("| --- | --- | --- | --- | --- |")
        whole = results["whole"]
        for side, result in results.items():
            print(
                f"| {side} | {1e3 * result['seconds']:.0f} "
                f"| {result['seconds'] / whole['seconds']:.2f} "
                f"| {result['bytes'] / 2**20:.0f} | {result['bytes'] / whole['bytes']:.2f} |",
                flush=True,
            )


def run(side, shape, ignored):
    """Seconds of each step, and the peak memory above weights and two moments a weight."""
    import keras
    import numpy as np

    from keras_llm import losses, metrics, models, optimizers

    class WithLogits(models.CausalTransformer):
        """Its `call` might do anything: it takes the path of whole logits."""

        def call(self, inputs, training=None):
            return super().call(inputs, training=training)

    vocab, d_model, layers, heads, batch, length = SHAPES[shape]
    rng = np.random.default_rng(0)
    steps = WARM_UP + STEPS[shape]
    ids = rng.integers(1, vocab, (steps * batch, length), dtype="int32")
    labels = np.where(rng.random(ids.shape) < ignored, -100, np.roll(ids, -1, axis=1))

    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == WARM_UP:  # compiled by now, which takes more memory than a step
                harness.forget_peak()
            times.append(time.perf_counter())

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for the step

    cls = {"whole": WithLogits, "pass": models.CausalTransformer}[side]
    model = cls(vocab, d_model, layers, heads, length)
    model.compile(
        optimizer=optimizers.AdamW(1e-4, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()],
    )
    start = harness.resident_bytes() + 8 * model.count_params()
    model.fit(ids, labels, batch_size=batch, shuffle=False, verbose=0, callbacks=[Clock()])
    above = harness.resident_bytes("VmHWM") - start
    seconds = [b - a for a, b in itertools.pairwise([*times, time.perf_counter()])]
    return {"seconds": seconds[WARM_UP:-1], "bytes": above}


if __name__ == "__main__":
    main()
