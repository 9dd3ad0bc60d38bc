"""A state as JSON and safetensors, and back."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from keras_llm.checkpoints.state_tree import is_plain, pack, unpack
from keras_llm.checkpoints.tensor_file import read_tensors, write_tensors

pytestmark = pytest.mark.backend_free

STATES = {
    "numbers": {"a": 1, "b": 0.1 + 0.2, "c": True, "d": None, "e": "ü\n", "f": 2**80},
    "no numbers": [float("nan"), float("inf"), -float("inf"), -0.0],
    "nested": [(), (1, (2.0,)), [], {}, {"x": [{"y": (None,)}]}],
    "odd keys": {1: "a", (2, "b"): 3, "$array": "no array", "a/b": {"c": 1}},
    "python": __import__("random").Random(3).getstate(),
    "numpy": np.random.RandomState(3).get_state(),
}


def through_files(state, folder):
    """Written and read."""
    packed, arrays = pack(state)
    write_tensors(folder / "t.safetensors", arrays)
    text = json.dumps(packed, allow_nan=False)
    return unpack(json.loads(text), read_tensors(folder / "t.safetensors"))


@pytest.mark.parametrize("name", STATES)
def test_what_is_no_tensor(name, tmp_path):
    found = through_files(STATES[name], tmp_path)
    np.testing.assert_equal(found, STATES[name])
    assert repr(found) == repr(STATES[name]), "the classes are the same too"


TENSORS = {
    "bfloat16": torch.arange(6).to(torch.bfloat16).reshape(2, 3) / 7,
    "float8": (torch.arange(4) / 3).to(torch.float8_e4m3fn),
    "float64": torch.tensor([np.pi, -0.0, float("nan")], dtype=torch.float64),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "strided": torch.arange(10.0)[::3],
    "expanded": torch.ones(1).expand(4),
    "trained": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name, tmp_path):
    tensor = TENSORS[name]
    [found] = through_files([tensor], tmp_path)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    assert torch.equal(found.view(width), tensor.detach().contiguous().view(width)), "all bits"


ARRAYS = {
    "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16) / 7,
    "float16": np.arange(3, dtype="float16") / 7,
    "uint32": np.array([2**32 - 1], "uint32"),
    "uint64": np.array([2**64 - 1], "uint64"),
    "scalar": np.array(7),
    "empty": np.zeros((3, 0), "int8"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, tmp_path):
    [found] = through_files([ARRAYS[name]], tmp_path)
    assert found.shape == ARRAYS[name].shape
    assert found.dtype.newbyteorder("=") == ARRAYS[name].dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, ARRAYS[name])


def test_numbers_of_numpy_stay_numbers(tmp_path):
    state = [np.float64(0.1), np.float32(0.1), np.int32(3), np.bool_(True)]
    found = through_files(state, tmp_path)
    assert found == state and [type(x) for x in found] == [type(x) for x in state]


def test_what_is_packed_is_a_copy():
    tensor, array, inner = torch.zeros(2), np.zeros(2), [1]
    packed, arrays = pack({"t": tensor, "a": array, "l": inner})
    tensor += 1
    array += 1
    inner.append(2)
    assert packed["l"] == [1]
    assert arrays["t"].tolist() == arrays["a"].tolist() == [0, 0]


def test_names_that_meet_stay_apart(tmp_path):
    state = {"a": {"b": np.zeros(1)}, "a/b": np.ones(1)}
    np.testing.assert_equal(through_files(state, tmp_path), state)


def test_the_file_is_one_of_safetensors(tmp_path):
    _, arrays = pack({**TENSORS, "arrays": ARRAYS})
    size, _ = write_tensors(tmp_path / "t.safetensors", arrays)
    assert size == (tmp_path / "t.safetensors").stat().st_size
    found = load_file(tmp_path / "t.safetensors")
    assert set(found) == set(arrays)
    for name in TENSORS:
        assert torch.equal(found[name].float().nan_to_num(), TENSORS[name].float().nan_to_num())


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, np.array(["text"]), np.array([None]), b"bytes", lambda: 0, 1j]
)
def test_anything_else_is_named(value):
    with pytest.raises(TypeError, match=r"Received: .*deep/0"):
        pack({"deep": [value]})
    assert not is_plain({"deep": [value]})


@pytest.mark.parametrize("name", [*STATES])
def test_plain_is_what_can_be_packed(name):
    assert is_plain(STATES[name])


@pytest.mark.parametrize(
    "packed",
    [
        {"$array": "missing", "as": "numpy"},
        {"$array": ["x"], "as": "numpy"},
        {"$array": "x"},
        {"$tuple": 3},
        {"$float": []},
        {"$items": [1]},
        {"$items": [[{}, 1]]},
    ],
)
def test_what_was_not_saved_is_refused(packed):
    with pytest.raises(ValueError, match="no state that was saved"):
        unpack(packed, {"x": np.zeros(1)})
