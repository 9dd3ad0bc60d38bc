"""One model, saved on PyTorch: JAX and TensorFlow see the same loss, metrics and update."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import keras

from keras_llm import losses, metrics, models, optimizers
from tests.programs import Program

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]

LOSSES = {
    "crossentropy": losses.MaskedSparseCategoricalCrossentropy(0, 0.1, 1e-3),
    "focal": losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, 0),
}

# What every backend does with a saved model, in a process of its own.
EVALUATE = """
import json, sys
import keras_llm, keras, numpy as np

data = np.load(sys.argv[1] + "/data.npz")
logs = {}
for path in sys.argv[2:]:
    model = keras.models.load_model(f"{sys.argv[1]}/{path}.keras")
    x = {k: data[k] for k in ("encoder_ids", "decoder_ids")} if "seq2seq" in path else data["ids"]
    logs[path] = [model.evaluate(x, data["labels"], batch_size=4, verbose=0, return_dict=True)]
    for _ in range(3):
        model.fit(x, data["labels"], batch_size=8, shuffle=False, verbose=0)
    logs[path] += [model.evaluate(x, data["labels"], batch_size=4, verbose=0, return_dict=True)]
print(json.dumps(logs))
"""


def build(kind, loss):
    """A small model of each kind, dropout off so that updates can be compared."""
    keras.utils.set_random_seed(0)
    if kind == "causal":
        model = models.CausalTransformer(23, 16, 1, 4, num_key_value_heads=2, max_length=8)
    else:
        model = models.Seq2SeqTransformer(23, 16, 1, 2, max_length=8, dropout=0.0)
    model.compile(
        optimizer=optimizers.AdamW(1e-2, global_clipnorm=1.0),
        loss=loss,
        metrics=[metrics.Perplexity(0), metrics.MaskedTokenAccuracy(1, 0)],
        weighted_metrics=[metrics.BitsPerByte([2] * 23, 0)],
    )
    return model


def test_three_backends_agree(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 23, (4, 8, 6))
    labels = np.where(rng.random((8, 6)) < 0.2, 0, ids[3])
    np.savez(
        tmp_path / "data.npz",
        ids=ids[0],
        encoder_ids=ids[1],
        decoder_ids=ids[2],
        labels=labels,
    )
    names = []
    # Each kind of model and each loss once: every fit and evaluation of a model is compiled.
    for kind, name in (("causal", "focal"), ("seq2seq", "crossentropy")):
        names.append(f"{kind}-{name}")
        build(kind, LOSSES[name]).save(tmp_path / f"{names[-1]}.keras")

    (tmp_path / "program.py").write_text(EVALUATE)
    program = Program(tmp_path / "program.py", tmp_path, *names)
    assert program.wait() == 0, program.errors[-3000:]
    results = {"torch": json.loads(program.printed.strip().splitlines()[-1])}
    for backend in ("jax", "tensorflow"):
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-W", "ignore", "-c", EVALUATE, str(tmp_path), *names]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        results[backend] = json.loads(done.stdout.strip().splitlines()[-1])
    for backend in ("jax", "tensorflow"):
        for name in names:
            for when, theirs, ours in zip(
                ("before", "after"), results[backend][name], results["torch"][name], strict=True
            ):
                # Three steps of AdamW in float32 add a digit of noise.
                tolerance = 1e-5 if when == "before" else 1e-3
                assert theirs == pytest.approx(ours, rel=tolerance), (backend, name, when)
