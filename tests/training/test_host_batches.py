"""On a GPU Keras gets its batches from the host, and they are those that it makes of the data."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, models
from keras_llm.training.torch import host_batches
from keras_llm.training.torch.host_batches import label_counts

pytestmark = pytest.mark.torch_only

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 11, (2, 10, 5))
W = RNG.random(X.shape)
ARRAYS = {
    "arrays": (X, Y),
    "weights": (X, Y, W),
    "tensors": (torch.tensor(X), torch.tensor(Y)),
    "a dictionary": ({"a": X, "b": X.astype("uint16")}, Y, W),
    "of bytes": (X.astype("uint8"), Y.astype("int32"), W.astype("float32")),
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is the CPU."""
    monkeypatch.setattr(host_batches, "uses_gpu", lambda: True)
    monkeypatch.setattr(host_batches, "to_gpu", lambda tensor: tensor)


class Seen(keras.Model):
    """Keeps what Keras's loop hands to a step."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=())
        self.compile(optimizer="sgd")
        self.batches = []

    def call(self, x):
        return self.scale

    def train_step(self, data):
        self.batches.append(keras.tree.map_structure(host_batches.copied, data))
        return {"loss": 0.0}


def seen(data, shuffle, batch_size, steps):
    """The batches of two epochs."""
    keras.utils.set_random_seed(3)
    model = Seen()
    model.built = True
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    model.fit(
        *(x, y, batch_size),
        sample_weight=weight,
        epochs=2,
        steps_per_epoch=steps,
        shuffle=shuffle,
        verbose=0,
    )
    return model.batches


@pytest.mark.parametrize("data", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("batch_size", "steps"), [(4, None), (None, None), (None, 2), (3, 2)])
@pytest.mark.quick(3)
def test_batches_are_keras_own(data, shuffle, batch_size, steps, gpu):
    want = seen(data, shuffle, batch_size, steps)
    taken = host_batches.on_host(data, batch_size, steps, shuffle)
    got = seen((taken,), False, None, steps)
    assert len(got) == len(want) >= 2
    for mine, hers in zip(got, want, strict=True):
        mine, hers = keras.tree.flatten(mine), keras.tree.flatten(hers)
        for a, b in zip(mine, hers, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_what_is_no_array_is_left_to_keras(gpu):
    for data in ((X, Y[:3]), ([1.0, 2.0], Y), (np.float32(1.0),)):
        assert host_batches.on_host(data, 2, None, False) is None
    assert host_batches.on_host((X, Y), 2, None, "batch") is None


def test_a_generator_goes_on_where_it_was(gpu):
    batches = [(X[i : i + 2], Y[i : i + 2], None) for i in range(0, 10, 2)]
    got = list(host_batches.on_host(((b for b in batches), None, None), None, None, None))
    assert len(got) == 5
    for (x, y, weight), want in zip(got, batches, strict=True):
        assert weight is None
        assert isinstance(x, torch.Tensor)
        np.testing.assert_array_equal(x.numpy(), want[0])
        np.testing.assert_array_equal(y.numpy(), want[1])


def test_fit_and_evaluate_give_the_same_numbers(gpu, monkeypatch):
    def run():
        keras.utils.set_random_seed(0)
        model = models.CausalTransformer(11, 8, 1, 2, max_length=5)
        loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss)
        logs = model.fit(
            X, Y, batch_size=4, epochs=2, validation_data=(X[:6], Y[:6]), verbose=0
        ).history
        return [*logs["loss"], *logs["val_loss"], model.evaluate(X, Y, batch_size=3, verbose=0)]

    got = run()
    monkeypatch.setattr(host_batches, "uses_gpu", lambda: False)
    assert got == run()


@pytest.mark.cuda_only
@pytest.mark.parametrize("data", ARRAYS.values(), ids=ARRAYS)
def test_copies_on_a_gpu(data):
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = keras.tree.map_structure(host_batches.copied, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, hers in zip(keras.tree.flatten(got), keras.tree.flatten(data), strict=True):
        assert mine.is_cuda
        np.testing.assert_array_equal(mine.cpu().numpy(), np.asarray(hers))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64"])
def test_label_counts_are_those_of_numpy(dtype):
    labels = np.random.default_rng(0).integers(0, 5, (4, 6)).astype(dtype)
    expected = (labels != 3).sum(1)
    assert label_counts(labels, 3).tolist() == expected.tolist()
    assert label_counts(torch.from_numpy(labels), 3).tolist() == expected.tolist()
    # A byte holds no -100: all of its labels count.
    every = [6] * 4 if dtype.startswith("u") else (labels != -100).sum(1).tolist()
    assert label_counts(labels, -100).tolist() == every


@pytest.mark.parametrize("labels", [None, {"a": 1}, np.zeros((2, 3)), np.zeros(3, "int32")])
def test_labels_that_cannot_be_counted_are_left_alone(labels):
    assert label_counts(labels, 0) is None
