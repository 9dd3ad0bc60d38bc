import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_llm import data

pytestmark = pytest.mark.backend_free


@given(
    hnp.arrays(
        st.sampled_from([np.int32, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.integers(-100, 30521),
    )
)
def test_shifted_right(target):
    decoder_ids, labels = data.teacher_forcing(target)
    assert decoder_ids.dtype == labels.dtype == target.dtype
    assert decoder_ids.shape == labels.shape == target.shape
    np.testing.assert_array_equal(labels, target)
    assert (decoder_ids[:, 0] == 101).all()
    np.testing.assert_array_equal(decoder_ids[:, 1:], np.maximum(target[:, :-1], 0))


@pytest.mark.torch_only
def test_equals_t5():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=20, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, pad_token_id=3
    )
    config.decoder_start_token_id = 5
    t5 = transformers.T5ForConditionalGeneration(config)
    target = np.random.default_rng(0).integers(0, 20, (4, 9))
    target[:, 6:] = -100
    decoder_ids, _ = data.teacher_forcing(target, start_id=5, pad_id=3)
    np.testing.assert_array_equal(decoder_ids, t5._shift_right(torch.tensor(target)).numpy())


@pytest.mark.every_backend
def test_takes_lists_and_tensors_and_leaves_the_input_alone():
    target = np.array([[7, 8, 102]])
    for each in (target, target.tolist(), keras.ops.convert_to_tensor(target)):
        decoder_ids, labels = data.teacher_forcing(each)
        assert isinstance(decoder_ids, np.ndarray) and isinstance(labels, np.ndarray)
        assert decoder_ids.tolist() == [[101, 7, 8]]
    assert target.tolist() == [[7, 8, 102]]


def test_errors():
    with pytest.raises(ValueError, match=r"shape \[batch, length\].*\(3,\)"):
        data.teacher_forcing([7, 8, 102])
    with pytest.raises(TypeError, match=r"must be integers.*float64"):
        data.teacher_forcing([[7.0, 8.0]])
    with pytest.raises(ValueError, match=r"start_id=-1"):
        data.teacher_forcing([[7]], start_id=-1)
