"""Training on several devices: exact on JAX, refused on TensorFlow."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("several_devices.py")
# Of the order of rounding: the sums are taken in another order.
LARGEST = 1e-6
TOKENS, D_MODEL, VOCAB = 16 * 200, 16, 1000
NAMES = ["compile", "fit", "evaluate", "train_on_batch", "test_on_batch"]


@functools.cache
def found(devices: int) -> dict:
    """What the program prints, in a process that has so many devices."""
    import jax

    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    # That of this process, in which `conftest.py` has set it.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    env = {**os.environ, "XLA_FLAGS": flags, **cache}
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.jax_only
@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_several_devices_train_like_one(devices):
    differences = found(devices)["differences"]
    assert len(differences) > 1
    too_large = {
        (case, distribution, name): value
        for case, each in differences.items()
        for distribution, values in each.items()
        for name, value in values.items()
        if not value <= LARGEST
    }
    assert too_large == {}


@pytest.mark.jax_only
@pytest.mark.slow
def test_a_device_holds_no_logits_of_its_rows_and_no_hidden_vectors_of_others():
    held = found(4)["held"]
    # What meets are the sums of gradients: of the embedding, the largest variable.
    assert held["own rows"]["sent"] == VOCAB * D_MODEL < TOKENS * D_MODEL
    assert held["own rows"]["held"] < TOKENS // 4 * VOCAB
    # Without what keeps each device on its rows, it would show here.
    assert held["any rows"]["sent"] >= TOKENS * D_MODEL


TENSORFLOW = """
import keras_llm, keras
import numpy as np
import tensorflow as tf
from keras_llm import losses, models

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
ids = np.array([[1, 2, 3], [2, 3, 4]])

def tell(what, function):
    try:
        function()
        print(what, "trained")
    except RuntimeError as error:
        print(what, error)

loss = losses.MaskedSparseCategoricalCrossentropy()
with strategy.scope():
    spread = models.CausalTransformer(8, 8, 1, 2)
# Keras goes by the strategy in which a model was made, and else by that of the call.
tell("compile", lambda: spread.compile("sgd", loss))
model = models.CausalTransformer(8, 8, 1, 2)
model.compile("sgd", loss)
with strategy.scope():
    for name in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        tell(name, lambda: getattr(model, name)(ids, ids))
"""


@pytest.mark.not_torch
@pytest.mark.not_jax
@pytest.mark.slow
def test_tensorflow_refuses_several_devices():
    command = [sys.executable, "-W", "ignore", "-c", TENSORFLOW]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.partition(" ") for line in done.stdout.splitlines() if " " in line]
    told = {name: text for name, _, text in told if name in NAMES}
    assert list(told) == NAMES
    assert all("not supported on the TensorFlow backend" in text for text in told.values())
