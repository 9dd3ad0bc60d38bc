"""Trains models on one device and on several, on JAX; prints by how much the numbers differ.

Run by `test_several_devices.py`, in a process that has `--xla_force_host_platform_device_count`.
"""

import contextlib
import json
import re
import sys
import tempfile

import numpy as np

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import jax
import keras
from keras.distribution import DataParallel, DeviceMesh, LayoutMap, ModelParallel

from keras_llm import callbacks, data, losses, metrics, models, optimizers
from keras_llm.backend.ops import vocabulary_pass

DEVICES = jax.device_count()
VOCAB = 32
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, VOCAB, (11, 7))
LABELS = np.roll(IDS, -1, axis=1)
# Rows with few tokens, and one with none: the devices have unequal sums.
LABELS[2, 1:], LABELS[5], LABELS[8, 3:] = 0, 0, 0
WEIGHTS = RNG.uniform(0.1, 2.0, IDS.shape).astype("float32")


# Where variables are


def data_parallel():
    return DataParallel()


def model_parallel():
    """Rows over one axis; heads, feed-forward and vocabulary over the other."""
    layouts = LayoutMap(DeviceMesh((DEVICES // 2, 2), ("batch", "model")))
    layouts[".*embedding/embeddings"] = ("model", None)
    layouts[".*attention/(query|key|value)/kernel"] = (None, "model")
    layouts[".*attention/output/kernel"] = ("model", None)
    layouts[".*feed_forward/(gate|up)/kernel"] = (None, "model")
    layouts[".*feed_forward/down/kernel"] = ("model", None)
    return ModelParallel(layout_map=layouts, batch_dim_name="batch")


def fully_sharded():
    """Rows and every matrix over the same devices."""
    layouts = LayoutMap(DeviceMesh((DEVICES,), ("batch",)))
    layouts[".*(embeddings|kernel)"] = ("batch", None)
    return ModelParallel(layout_map=layouts, batch_dim_name="batch")


# What is trained


def causal():
    return models.CausalTransformer(VOCAB, 16, 1, 2, max_length=8)


def seq2seq():
    return models.Seq2SeqTransformer(VOCAB, 16, 1, 2, max_length=8, dropout=0.0)


def ours(**kwargs):
    return {
        "loss": losses.MaskedSparseCategoricalCrossentropy(0, **kwargs),
        "metrics": [metrics.Perplexity(0), metrics.MaskedTokenAccuracy(1, 0)],
    }


def plain(model):
    """Batches of 6 and 5 rows, none of which the devices divide."""
    adam = optimizers.AdamW(1e-2, epsilon=1e-2, global_clipnorm=1.0)
    model.compile(adam, **ours(label_smoothing=0.1))
    held_out = IDS[:9], LABELS[:9]
    fit(model, IDS, LABELS, batch_size=6, epochs=2, validation_data=held_out)
    assert not model.step.why_logits()


def accumulation(model):
    """Micro-batches, windows of two batches, weights, a split of the rows."""
    sgd = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    weighted = [metrics.Perplexity(0)]
    loss = losses.MaskedSparseCategoricalCrossentropy(0)
    model.compile(sgd, loss, weighted_metrics=weighted, micro_batch_size=DEVICES)
    given = {"sample_weight": WEIGHTS, "validation_split": 0.2}
    fit(model, IDS, LABELS, batch_size=3, epochs=2, **given)


def adafactor(model):
    """Inputs in a dictionary, an optimizer with a state of its own shapes."""
    adafactor = optimizers.Adafactor(1e-2, relative_step=False, epsilon_1=1e-3)
    model.compile(adafactor, **ours(label_smoothing=0.1))
    x = {"encoder_ids": IDS[::-1].copy(), "decoder_ids": IDS}
    fit(model, x, LABELS, batch_size=6, epochs=2)


def metrics_of_keras(model):
    """Metrics that count rows whatever their labels, a last batch of one row, and labels of a
    dtype in which none is ignored."""
    counted = [keras.metrics.SparseCategoricalAccuracy(), metrics.MaskedTokenAccuracy(3, 0)]
    loss = losses.MaskedSparseCategoricalCrossentropy(-100)
    with_counted = [metrics.Perplexity(-100), *counted]
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=with_counted, micro_batch_size=DEVICES)
    labels = LABELS.astype("uint8")
    held_out = IDS[:5], labels[:5]
    fit(model, IDS[:9], labels[:9], batch_size=8, epochs=2, validation_data=held_out)
    model.seen["train_on_batch"] = model.train_on_batch(IDS[:3], LABELS[:3])
    model.seen["test_on_batch"] = model.test_on_batch(IDS[:5], LABELS[:5])
    assert model.step.why_logits()


def batches_of_5():
    """Our loader; the last of its three batches is a row."""
    texts = [" ".join(f"word{number % 20}" for number in row) for row in IDS]
    tokenizer = data.train_tokenizer(texts, unit="word")
    return data.causal_lm(texts, tokenizer, seq_len=7, batch_size=5)


def distillation(model):
    """Two passes without logits."""
    keras.utils.set_random_seed(1)
    model = models.Distillation(model, causal(), temperature=2.0, alpha=0.5)
    model.seen = {}
    model.compile(keras.optimizers.SGD(0.5), **ours())
    fit(model, IDS, LABELS, batch_size=6)
    return model


def calls(model):
    """Everything but `fit`; the predictions of as many rows as there are."""
    model.compile(keras.optimizers.SGD(0.5), **ours())
    model.seen["train_on_batch"] = [
        model.train_on_batch(IDS[:rows], LABELS[:rows]) for rows in (3, 1)
    ]
    model.seen["test_on_batch"] = model.test_on_batch(IDS[:5], LABELS[:5], WEIGHTS[:5])
    model.seen["evaluate"] = model.evaluate(IDS, LABELS, batch_size=6, verbose=0)
    model.seen["predict"] = model.predict(IDS, batch_size=6, verbose=0)
    rows = []
    watch = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda batch, logs: rows.append(np.asarray(logs["outputs"]))
    )
    model.predict(IDS, batch_size=6, verbose=0, callbacks=[watch])
    model.seen["predict_callback"] = rows
    model.seen["generate"] = model.generate(IDS[0, :4], max_new_tokens=3)


def resumed(model):
    """An error in the middle of a window and an epoch; another model goes on; NaN is skipped."""

    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    def compiled(model):
        sgd = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
        model.compile(sgd, **ours())
        return model

    with tempfile.TemporaryDirectory() as folder:
        given = {"callbacks": [callbacks.TrainingCheckpoint(folder, every_steps=1), Killed()]}
        with contextlib.suppress(KeyboardInterrupt):
            compiled(model).fit(batches_of_5(), steps=5, verbose=0, **given)
        assert int(model.optimizer.iterations) == 1, model.optimizer.iterations
        kept = callbacks.TrainingCheckpoint(folder, every_steps=1)
        again = compiled(causal())
        again.seen = {}
        given = {"validation_data": batches_of_5(), "callbacks": [kept]}
        fit(again, batches_of_5(), steps=5, **given)
    guard = callbacks.FiniteGuard()
    ids = IDS[:9].copy()
    # Outside of the vocabulary: its vector is NaN.
    ids[4, 2] = VOCAB + 1
    again.compile(keras.optimizers.SGD(0.5), ours()["loss"])
    again.fit(ids, LABELS[:9], batch_size=3, shuffle=False, verbose=0, callbacks=[guard])
    [skipped] = guard.skipped
    again.seen["skipped"] = skipped.batch, len(skipped.cause)
    return again


def fit(model, *args, **kwargs):
    """Keeps the numbers of a `fit`, but for those of a clock."""
    history = model.fit(*args, shuffle=False, verbose=0, **kwargs).history
    clock = ("tokens_per_second", "seconds")
    model.seen["fit"] = {k: v for k, v in history.items() if not k.endswith(clock)}


def numbers(case, make, distribution):
    """All that a case has shown, then the weights."""
    keras.distribution.set_distribution(distribution)
    try:
        keras.utils.set_random_seed(0)
        model = make()
        model.seen = {}
        model = case(model) or model
        weights = [np.asarray(v.value) for v in model.trainable_variables]
        return model.seen | {"weights": weights}
    finally:
        keras.distribution.set_distribution(None)


def difference(one, several) -> float:
    """The largest difference of two arrays, relative to the largest number."""
    one, several = np.asarray(one, "float64"), np.asarray(several, "float64")
    assert one.shape == several.shape, (one.shape, several.shape)
    return float(np.abs(one - several).max() / (np.abs(one).max() or 1.0))


def differences(one, several) -> dict:
    """The differences of what two runs have shown, by name."""
    one, several = (keras.tree.flatten_with_path(seen) for seen in (one, several))
    return {
        "/".join(map(str, path)): difference(value, other)
        for (path, value), (_, other) in zip(one, several, strict=True)
    }


# What is sent and held


def compiled_step(rows: int, length: int) -> str:
    """The program of a step whose vocabulary is larger than all else."""
    model = models.CausalTransformer(1000, 16, 1, 2, max_length=length)
    model.build((None, length))
    model.compile(optimizers.AdamW(1e-2), **ours())
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    groups = [model.trainable_variables, model.non_trainable_variables]
    groups += [model.optimizer.variables, model.metrics_variables]
    state = tuple([variable.value for variable in group] for group in groups)
    ids = np.ones((rows, length), "int32")
    layout = keras.distribution.distribution().get_data_layout(ids.shape).backend_layout
    batch = tuple(jax.device_put(array, layout) for array in (ids, ids))
    return jax.jit(model.train_step).lower(state, batch).compile().as_text()


def sizes(program: str, operation: str = r"\w") -> list[int]:
    """The numbers in each result of an operation of a compiled program."""
    lines = [line for line in program.splitlines() if re.search(rf" {operation}", line)]
    shapes = re.findall(r"\b(?:f32|s32|u32)\[([\d,]+)\]", "\n".join(lines))
    return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


def held_and_sent() -> dict:
    """The largest array on a device, and the largest that devices send each other: with our pass,
    and without what keeps each device on its rows."""
    found, own_rows = {}, vocabulary_pass.with_own_rows
    with DataParallel().scope():
        for name, pass_of in (
            ("own rows", own_rows),
            ("any rows", lambda function, rows, whole: function(rows, whole)),
        ):
            vocabulary_pass.with_own_rows = pass_of
            program = compiled_step(4 * DEVICES, 200)
            sent = sizes(program, r"(all-|reduce-scatter|collective-)\S*\(")
            found[name] = {"held": max(sizes(program)), "sent": max(sent)}
    vocabulary_pass.with_own_rows = own_rows
    return found


EVERYWHERE = [data_parallel, model_parallel, fully_sharded]
CASES = {
    4: [
        (plain, causal, EVERYWHERE),
        (accumulation, causal, [data_parallel, fully_sharded]),
        (adafactor, seq2seq, [data_parallel, model_parallel]),
        (metrics_of_keras, causal, [data_parallel]),
        (resumed, causal, [data_parallel]),
        (distillation, causal, [data_parallel]),
        (calls, causal, [data_parallel]),
    ],
    8: [(plain, causal, [data_parallel, model_parallel]), (accumulation, causal, [data_parallel])],
}


def main(only: list[str]):
    """Prints JSON: `{case: {distribution: {number: difference}}}`, and what a step holds."""
    found = {}
    for case, make, distributions in CASES[DEVICES]:
        if only and case.__name__ not in only:
            continue
        one = numbers(case, make, None)
        found[case.__name__] = {
            of.__name__: differences(one, numbers(case, make, of())) for of in distributions
        }
    held = held_and_sent() if "held" in only or (not only and DEVICES == 4) else None
    print(json.dumps({"differences": found, "held": held}))


if __name__ == "__main__":
    main(sys.argv[1:])
