"""Processes that divide the optimizer's state train as one process does."""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import distribution
from tests.distribution import sharded
from tests.distribution.processes import environment, launch

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]
SCRIPT = Path(sharded.__file__)
# Of a batch of nine rows in batches of four.
UPDATES = 3


FEW = ["adamw", "accumulated", "gpt2"]
RUNS = [(2, "optimizer", sharded.CASES), (4, "optimizer", sharded.CASES)]
RUNS += [(2, "parameters", FEW), (4, "parameters", sharded.CASES)]
EVERY = [(size, kind, name) for size, kind, names in RUNS for name in names]
PARAMETERS = [(2, "parameters"), (4, "parameters")]


@functools.cache
def results(size, kind):
    """The results of the cases, trained by so many processes."""
    folder = Path(tempfile.mkdtemp())
    if size == 1:
        command = [sys.executable, str(SCRIPT), str(folder)]
        subprocess.run(command, check=True, timeout=300, env=environment())
    else:
        # Once by a call, once by the environment.
        chosen = {"KERAS_LLM_SHARD": "optimizer"} if size == 4 else {}
        launch(size, SCRIPT, str(folder), **chosen)
    return {name: dict(np.load(folder / f"{name}.npz")) for name in sharded.CASES}


@pytest.mark.parametrize("name", sharded.CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_the_numbers_are_those_of_one_process(size, name):
    found, wanted = results(size)[name], results(1)[name]
    assert set(found) == set(wanted)
    for key, values in found.items():
        if key.startswith("log"):
            np.testing.assert_allclose(values, wanted[key], rtol=1e-6, err_msg=key)
        elif key.startswith(("weight", "state", "iterations")):
            np.testing.assert_allclose(values, wanted[key], rtol=0, atol=1e-6, err_msg=key)
    # All processes have the same weights to the last bit.
    assert found["difference"] == 0


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["adamw", "accumulated", "saved"])
def test_each_process_has_its_part_of_the_state(size, name):
    parts, whole = results(size)[name]["bytes of state"], results(1)[name]["bytes of state"]
    assert np.all(np.abs(parts - whole / size) < 0.1 * whole / size)


@pytest.mark.parametrize("size", [2, 4])
def test_an_update_sends_gradients_to_owners_and_values_back(size):
    found = results(size)["adamw"]
    parameters = found["bytes of parameters"]
    assert found["bytes sent reduce"] == UPDATES * parameters
    assert found["bytes sent broadcast"] == UPDATES * parameters
    # Facts of updates, metrics and callbacks: a few numbers.
    assert found["bytes sent all_reduce"] < 0.2 * parameters


@pytest.mark.parametrize("size", [2, 4])
def test_micro_batches_are_reduced_once_an_update(size):
    found = results(size)["accumulated"]
    # Two batches make an update, and what is left at the end of an epoch makes one too.
    assert found["bytes sent reduce"] == 2 * found["bytes of parameters"]


def test_another_kind_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"shard must be .* Received: shard='weights'"):
        keras_llm.distribute(shard="weights")
    monkeypatch.setenv("KERAS_LLM_SHARD", "weights")
    with pytest.raises(ValueError, match=r"KERAS_LLM_SHARD must be .* Received: .*'weights'"):
        distribution.sharded()


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        keras.optimizers.SGD(use_ema=True),
    ],
)
def test_an_optimizer_that_cannot_work_by_parts_is_refused(optimizer):
    from keras_llm.training.torch.sharded import ShardedOptimizer

    with pytest.raises(ValueError, match=r"shard='optimizer' needs .* Received: "):
        ShardedOptimizer(None, optimizer)
