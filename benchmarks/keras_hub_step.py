"""One training step of a KerasHub GPT-2 of 30M parameters: the task's own `fit` beside ours.

    python benchmarks/keras_hub_step.py
    python benchmarks/keras_hub_step.py --dropout 0.1 --sides task ours+metrics

AdamW, gradients clipped to norm 1, a tenth of the labels left out; float32. Both sides train the
same task object, `task` with the loss and the one metric that its `compile` gives it and Keras's
AdamW, `ours` with the optimizer of keras_llm, `ours+metrics` with two metrics. The task's `fit`
needs TensorFlow or grain; `task+loader` is Keras's `fit` without the task's way of reading, and
needs neither. All ids are ready: no side tokenises. Times are CPU seconds of the process.
"""

import argparse
import json
import time

import harness
import train_step

SHAPE, STEPS = "hub", 12
# vocab, d_model, layers, heads, batch, length
train_step.SHAPES[SHAPE] = (50257, 384, 6, 6, 4, 128)
SIDES = ["task", "task+loader", "ours", "ours+metrics"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--side")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run(args)))
        return
    print(harness.machine())
    options = ("--steps", args.steps, "--dropout", args.dropout)
    results = harness.measure(__file__, args.sides, args.rounds, *options)
    base = results.get("task") or results[args.sides[0]]
    sizes = train_step.SHAPES[SHAPE]
    print(f"\nvocab, d_model, layers, heads, batch, length = {sizes}; dropout {args.dropout}")
    print("| side | CPU ms a step | / task | memory MB | / task |")
    print("| --- | --- | --- | --- | --- |")
    for side, result in results.items():
        seconds, size = result["seconds"], result["bytes"]
        cells = [side, f"{1e3 * seconds:.1f}", f"{seconds / base['seconds']:.2f}"]
        cells += [f"{size / 2**20:.0f}", f"{size / base['bytes']:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def run(args):
    """Seconds of each step, and the peak memory above weights and moments."""
    kind, *options = args.side.split("+")
    job = train_step.make_job(SHAPE, "cpu", options, steps=args.steps)
    job.clock = harness.Clock("cpu", time.process_time)
    return (own_fit if kind == "task" else our_fit)(make_task(job, args.dropout), job)


def make_task(job, dropout):
    import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
    from keras_hub.models import GPT2Backbone, GPT2CausalLM

    vocab, d_model, layers, heads, length = job.sizes
    backbone = GPT2Backbone(vocab, layers, heads, d_model, 4 * d_model, dropout, length)
    return GPT2CausalLM(backbone, preprocessor=None)


def own_fit(task, job):
    import keras
    import numpy as np

    task.compile(keras.optimizers.AdamW(1e-4, global_clipnorm=1.0))
    x, y, weights = job.ids.numpy(), job.labels.numpy(), (job.labels != -100).float().numpy()
    batch = {"token_ids": x, "padding_mask": np.ones_like(x)}, np.maximum(y, 0), weights
    job.count_memory(task.count_params())
    if "loader" in job.options:
        job.ids, job.labels = batch[0], batch[1:]
        keras.Model.fit(task, batches(job), verbose=0, shuffle=False)
        return job.result()

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            job.clock.tick()

    x, y, weights = keras.tree.map_structure(lambda part: np.tile(part, (job.steps, 1)), batch)
    task.fit(x, y, len(job.ids), weights, callbacks=[Clock()], verbose=0, shuffle=False)
    return job.result()


def batches(job):
    """The job's steps as a generator, which ticks at each."""
    for _ in range(job.steps):
        job.clock.tick()
        yield job.ids, *job.labels


def our_fit(task, job):
    from keras_llm import losses, metrics, models, optimizers

    model = models.from_keras_hub(task)
    model.compile(
        optimizer=optimizers.AdamW(1e-4, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-100),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()]
        if "metrics" in job.options
        else None,
    )
    return train_step.fit(model, job)


if __name__ == "__main__":
    main()
