"""Processes that divide the optimizer's state, or parameters too, train as one process does."""

import functools
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm.distribution import sharding
from tests.distribution import sharded
from tests.distribution.processes import launch

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]
SCRIPT = Path(sharded.__file__)
# In an epoch of nine rows in batches of four.
UPDATES = 3
FEW = ["adamw", "accumulated", "gpt2"]
# Other rows of a batch make other sums in bfloat16: it is compared with as many processes.
MIXED = "mixed"
KINDS = [(2, "optimizer"), (4, "optimizer"), (2, "parameters"), (4, "parameters")]
EVERY = [
    (size, kind, name)
    for size, kind in KINDS
    for name in (FEW if (size, kind) == (2, "parameters") else sharded.CASES)
    if name != MIXED
]


def results(size, kind):
    """The results of the cases, trained by so many processes; a failure fails at once again."""
    found = found_by(size, kind)
    if isinstance(found, Exception):
        raise found
    return found


@functools.cache
def found_by(size, kind):
    """`results`, or what went wrong."""
    try:
        return trained_by(size, kind)
    except AssertionError as error:
        return error


def trained_by(size, kind):
    """Trains."""
    names = [name for *which, name in EVERY if which == [size, kind]]
    names += [MIXED] if size == 2 else []
    folder = Path(tempfile.mkdtemp())
    # Once by a call, once by the environment.
    chosen = {"KERAS_LLM_SHARD": kind} if size == 4 else {}
    launch(size, SCRIPT, kind, str(folder), *names, **chosen)
    names = names or sharded.CASES
    return {name: dict(np.load(folder / f"{name}.npz")) for name in names}


def alone():
    """The results of one process, of which nothing is divided."""
    return results(1, "parameters")


@pytest.mark.parametrize("size, kind, name", EVERY)
def test_the_numbers_are_those_of_one_process(size, kind, name):
    found, wanted = results(size, kind)[name], alone()[name]
    assert set(wanted) < set(found)
    for key, values in found.items():
        if key.startswith("log"):
            np.testing.assert_allclose(values, wanted[key], rtol=1e-6, err_msg=key)
        elif key.startswith(("weight", "state", "iterations")):
            np.testing.assert_allclose(values, wanted[key], rtol=0, atol=1e-6, err_msg=key)
    # All processes have the same weights to the last bit.
    assert found["difference"] == 0


def test_casts_of_weights_are_sent_and_all_digits_are_kept():
    undivided, found = results(2, "nothing")["mixed"], results(2, "parameters")["mixed"]
    for key, values in undivided.items():
        if key.startswith(("log", "weight", "state")):
            np.testing.assert_allclose(found[key], values, rtol=1e-6, atol=1e-8, err_msg=key)
    assert found["difference"] == 0
    # Two bytes of each number of a layer's matrices, four of the scales of its two norms of 16.
    layers = [(size - 128) / 2 + 128 for size in found["bytes of layers"]]
    outside = found["bytes of parameters"] - found["bytes of layers"].sum()
    trained, evaluated = outside + 2 * sum(layers) - layers[-1], outside + sum(layers)
    assert found["bytes sent broadcast"] == UPDATES * (trained + evaluated)
    gradients = found["bytes of parameters"]
    assert found["explained bytes"] == pytest.approx((gradients + trained) / 2, abs=2)


@pytest.mark.parametrize("size, kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "accumulated"])
def test_each_process_has_its_part_of_the_state(size, kind, name):
    found, whole = results(size, kind)[name], alone()[name]["bytes of state"]
    assert np.all(np.abs(found["bytes of state"] - whole / size) < 0.1 * whole / size)
    assert found["bytes of gradients"] == found["bytes owned"]


@pytest.mark.parametrize("size", [2, 4])
def test_an_update_sends_gradients_to_owners_and_values_back(size):
    found = results(size, "optimizer")["adamw"]
    parameters = found["bytes of parameters"]
    assert found["bytes sent reduce"] == UPDATES * parameters
    assert found["bytes sent broadcast"] == UPDATES * parameters
    # Facts of updates, metrics and callbacks: a few numbers.
    assert found["bytes sent all_reduce"] < 0.1 * parameters


@pytest.mark.parametrize("kind", ["optimizer", "parameters"])
def test_explain_shows_what_is_sent_and_divided(kind):
    found = results(4, kind)["adamw"]
    divided, layers = found["explained"]
    # To owners, to all, and for the backward pass the layers but the last to all again.
    sent = 2 * found["bytes of parameters"]
    if kind == "parameters":
        sent += found["bytes of layers"][:-1].sum()
    # Of four parts three are others'.
    assert found["explained bytes"] == pytest.approx(3 / 4 * sent, abs=2)
    assert divided.startswith(f"distribute(shard='{kind}'): a process updates ")
    assert ("distribute(shard=...)" in layers) == (kind == "parameters")


@pytest.mark.parametrize("size", [2, 4])
def test_parameters_are_sent_for_every_pass_and_again_for_the_backward_pass(size):
    found = results(size, "parameters")["adamw"]
    parameters, layers = found["bytes of parameters"], found["bytes of layers"]
    assert found["bytes sent reduce"] == UPDATES * parameters
    # The backward pass begins with the last layer, and the rest stays for all of it. Then the
    # epoch is evaluated, in as many batches.
    sent = UPDATES * (parameters + layers[:-1].sum()) + UPDATES * parameters
    assert found["bytes sent broadcast"] == sent


@pytest.mark.parametrize("kind", ["optimizer", "parameters"])
def test_micro_batches_are_reduced_once_an_update(kind):
    found = results(4, kind)["accumulated"]
    # Two batches make an update, and what is left at the end of an epoch makes one too.
    assert found["bytes sent reduce"] == 2 * found["bytes of parameters"]


@pytest.mark.parametrize("size", [2, 4])
def test_a_process_holds_its_own_parameters_and_those_of_three_layers_at_most(size):
    found = results(size, "parameters")["adamw"]
    layers, others = found["bytes of layers"], found["bytes of layers of others"]
    # NaN stands for what is not there: one number a variable.
    assert found["bytes owned"] <= found["bytes between"] < 1.01 * found["bytes owned"] + 200
    outside = found["bytes of parameters"] - layers.sum()
    owned_inside = (layers - others).sum()
    rest_of_others = outside - (found["bytes owned"] - owned_inside)
    # A layer, and on its way, in one piece, the next one; in the backward pass a layer, the one
    # before it, and on its way the one before that.
    moments = [others[i] + layers[i + 1] for i in range(len(layers) - 1)]
    moments += [others[i] + layers[i - 1] for i in range(1, len(layers))]
    moments += [sum(others[i - 1 : i + 1]) + layers[i - 2] for i in range(2, len(layers))]
    theory = found["bytes owned"] + rest_of_others + max(moments)
    assert abs(found["bytes held"] - theory) < 0.1 * theory


def test_another_kind_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"shard must be .* Received: shard='weights'"):
        keras_llm.distribute(shard="weights")
    monkeypatch.setattr(sharding, "_chosen", ())
    monkeypatch.setenv("KERAS_LLM_SHARD", "weights")
    with pytest.raises(ValueError, match=r"KERAS_LLM_SHARD must be .* Received: .*'weights'"):
        sharding.sharded()


def test_a_regularizer_of_weights_is_refused_where_they_are_divided():
    from keras_llm.training.torch.sharded_parameters import check_regularizers

    model = sharded.transformer()
    check_regularizers(model.trainable_variables)
    kernel = model.backbone.blocks[1].feed_forward.up.kernel
    kernel.regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(ValueError, match=r"needs weights without a regularizer.*up/kernel"):
        check_regularizers(model.trainable_variables)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        lambda: keras.optimizers.SGD(use_ema=True),
    ],
)
def test_an_optimizer_that_cannot_work_by_parts_is_refused(optimizer):
    from keras_llm.training.torch.sharded_optimizer import ShardedOptimizer

    with pytest.raises(ValueError, match=r"keras_llm.distribute\(shard=.* needs .* Received: "):
        ShardedOptimizer(None, optimizer())
