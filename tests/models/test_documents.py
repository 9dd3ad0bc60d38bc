"""Documents packed into one row: each gets what it would get in a row by itself."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_llm import data, layers, losses, models
from keras_llm.backend.torch import attention, tensors
from keras_llm.backend.torch.packed_attention import HAS_KERNELS, rounded_up
from keras_llm.models import causal_backbone
from keras_llm.training.torch.captured_layer import CapturedLayer
from keras_llm.training.torch.compile_policy import CompilePolicy
from tests.logits import logits_of
from tests.models.llama import to_llama
from tests.models.weights import randomize
from tests.torch_operations import Shapes

SIZES = dict(vocab_size=23, d_model=16, num_layers=2, num_heads=4, max_length=64)
END = 2
IDS = np.array(
    [
        [5, 3, 8, END, 7, 9, END, 4],  # the last one goes on in another row
        [END, END, 6, 1, 1, END, 3, END],  # empty ones
        [8, 6, 7, 5, 3, 4, 9, 22],
    ]
)


def build(**options):
    options = {"document_end_id": END, **options}
    return randomize(models.CausalTransformer(**SIZES, **options), scale=0.2)


def documents(row):
    """The places of each document's tokens, its end included."""
    return np.split(np.arange(len(row)), np.flatnonzero(row[:-1] == END) + 1)


def alone(llama, row, positions=None):
    """Hugging Face's logits of each document in a row by itself."""
    positions = np.arange(len(row)) if positions is None else positions
    each = [(torch.tensor(row[at])[None], positions[None, at]) for at in documents(row)]
    logits = [llama(ids, position_ids=torch.tensor(places)).logits[0] for ids, places in each]
    return torch.cat(logits)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.sampled(2)
def test_a_document_does_not_see_those_before_it(heads):
    model = build(num_key_value_heads=heads)
    llama, got = to_llama(model), logits_of(model, IDS)
    for row, logits in zip(IDS, got, strict=True):
        want = alone(llama, row).detach().numpy()
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)


def test_without_the_argument_the_whole_row_before_is_seen():
    model = build(document_end_id=None)
    want = to_llama(model)(torch.tensor(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(logits_of(model, IDS), want, rtol=1e-5, atol=1e-5)
    assert np.abs(want[0] - alone(to_llama(model), IDS[0]).detach().numpy()).max() > 1e-2


def test_padding_between_and_before_documents():
    model = build(pad_id=0)
    llama = to_llama(model)
    padded = np.array([[0, 5, 0, 3, 8, END, 0, 7, 9, END, 4, 0]])
    got = logits_of(model, padded)[padded != 0]
    want = alone(llama, padded[padded != 0], np.flatnonzero(padded)).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_generated_sees_the_last_document_only():
    model = build()
    llama = to_llama(model)
    ends = 0
    # Of one length: JAX compiles for each.
    for prompt in ([5, 3, END, 7], [5, 9, 3, END], [END, END, 4, 1], [8, 9, 6, 7]):
        ids = model.generate(prompt, max_new_tokens=16, temperature=1.0, seed=1)
        ends += np.count_nonzero(ids[len(prompt) :] == END)
        state = model.backbone.start(np.zeros(1, int), capacity=len(ids))
        parts = [ids[: len(prompt)], *ids[len(prompt) :, None]]
        got = []
        for part in parts:
            hidden, state = model.backbone.extend(ops.convert_to_tensor(part[None]), state)
            got.append(ops.convert_to_numpy(model.head(hidden))[0])
        want = alone(llama, ids).detach().numpy()
        np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-5, atol=1e-5)
    assert ends > 1


def test_packed_texts_cost_what_separate_texts_cost():
    texts = ["b a b", "a a", "b", "a b b a b a a"]
    tokenizer = data.train_tokenizer(texts, unit="word")
    model = randomize(
        models.CausalTransformer(**SIZES, document_end_id=tokenizer.end_id), scale=0.2
    )
    separate, packed = (
        next(iter(data.causal_lm(texts, tokenizer, seq_len=24, batch_size=4, pack=pack)))
        for pack in (False, True)
    )
    # After an end there is nothing to predict where texts stand apart.
    labels = np.where(packed[0] == tokenizer.end_id, tokenizer.pad_id, packed[1])
    loss = losses.MaskedSparseCategoricalCrossentropy(
        ignore_index=tokenizer.pad_id, reduction="sum"
    )
    want = loss(separate[1], logits_of(model, separate[0].numpy()))
    got = loss(labels, logits_of(model, packed[0].numpy()))
    got, want = (float(ops.convert_to_numpy(x)) for x in (got, want))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.torch_only
# What torch.compile imports warns of itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    "path",
    [
        "host",
        "gpu",
        "captured",
        pytest.param("compiled", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_documents_alone(path, monkeypatch):
    model = build(num_key_value_heads=2)
    llama, factors = to_llama(model), torch.randn(*IDS.shape, 23)
    forward = model.backbone
    if path == "gpu":
        monkeypatch.setattr(attention, "is_on_host", lambda tensor: False)
    elif path != "host":
        forward = CapturedLayer(model.backbone, CompilePolicy(path == "compiled"))
        forward(torch.tensor(IDS), training=True)
    hidden = forward(torch.tensor(IDS), training=True)
    assert getattr(forward, "replayed", True)
    (model.head(hidden) * factors).sum().backward()
    for row, factor in zip(IDS, factors, strict=True):
        (alone(llama, row) * factor).sum().backward()
    ours = [model.backbone.token_embedding.embeddings.value.grad]
    theirs = [llama.model.embed_tokens.weight.grad]
    for block, layer in zip(model.backbone.blocks, llama.model.layers, strict=True):
        for name in ("query", "key", "value"):
            ours.append(getattr(block.self_attention, name).kernel.value.grad.T)
            theirs.append(getattr(layer.self_attn, f"{name[0]}_proj").weight.grad)
    for mine, hers in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, hers, rtol=1e-4, atol=1e-4)


@pytest.mark.torch_only
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_nothing_of_the_size_of_all_pairs_is_made(dtype):
    ids = np.random.default_rng(0).integers(0, 23, (2, 61))
    with Shapes() as shapes:
        build(dtype=dtype)(ids, training=True).float().square().sum().backward()
    assert (2, 61, 23) in shapes.seen
    assert not [shape for shape in shapes.seen if shape[-2:] == (61, 61)]


@pytest.mark.torch_only
def test_lengths_are_rounded_up_to_few_others_by_at_most_a_quarter():
    lengths = torch.arange(1, 2049)
    rooms = rounded_up(lengths)
    assert (rooms >= lengths).all()
    assert (rooms <= 1.25 * lengths).all()
    assert len(rooms.unique()) <= 40


@pytest.mark.backend_free
def test_it_is_saved_with_the_model(tmp_path):
    model = build()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.backbone.config.document_end_id == END
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded(IDS)), ops.convert_to_numpy(model(IDS))
    )


@pytest.mark.backend_free
def test_an_end_outside_the_vocabulary():
    with pytest.raises(ValueError, match=r"document_end_id.*23"):
        build(document_end_id=23)


@pytest.mark.parametrize(
    "how", [{}, {"causal": True, "attention_mask": np.ones((1, 1, 3, 3), bool)}]
)
def test_documents_that_would_be_overlooked(how):
    attention_layer = layers.Attention(d_model=8, num_heads=2)
    x = ops.ones((1, 3, 8))
    with pytest.raises(
        ValueError, match="segment_ids needs causal=True, and no attention_mask of pairs"
    ):
        attention_layer(
            x, attention_layer.keys_values(x), segment_ids=ops.array([[0, 0, 1]]), **how
        )


@pytest.mark.torch_only
def test_pytorch_still_has_the_kernels_by_the_names_that_we_know():
    assert HAS_KERNELS, (
        "documents take a mask of all pairs: find the new names of the CPU's kernels"
    )


@pytest.mark.backend_free
def test_an_end_that_is_padding():
    with pytest.raises(ValueError, match=r"must not be pad_id.*document_end_id=2, pad_id=2"):
        build(pad_id=END)


@pytest.mark.torch_only
@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.quick(3)
def test_a_step_tells_the_number_of_documents(micro_batch_size, run_eagerly, monkeypatch):
    """Where values cannot be seen, so that nobody has to wait for them."""
    seen = []

    def spy(segment_ids, counts, dtype, head_dim):
        seen.append(counts)
        return segment_ids

    monkeypatch.setattr(causal_backbone, "segments", spy)
    monkeypatch.setattr(tensors, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(
        causal_backbone,
        "host_values",
        lambda ids: ids if isinstance(ids, np.ndarray) else None,
    )
    model = build()
    model.compile(
        optimizer="sgd",
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
        micro_batch_size=micro_batch_size,
        run_eagerly=run_eagerly,
    )
    for _ in range(3):
        model.train_on_batch(IDS, IDS)
    counts = torch.cat(seen[: 1 if micro_batch_size is None else 2])
    # The last row has one, the first three, and the second four ends and what follows.
    assert counts.tolist() == [3, 5, 1]
    assert not any(counts.is_cuda for counts in seen)


@pytest.mark.cuda_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("pad_id", [None, 0])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_half_precision_on_a_gpu_is_as_near_as_with_a_mask(jit_compile, heads, pad_id, monkeypatch):
    """In bfloat16 by the kernel for sequences of different lengths, in float32 by a mask."""
    ids = torch.tensor(np.random.default_rng(0).integers(0, 23, (4, 64)), device="cuda")
    factors = torch.randn(4, 64, 32, device="cuda")
    options = {**SIZES, "d_model": 32, "num_key_value_heads": heads, "pad_id": pad_id}

    def run(dtype):
        model = randomize(
            models.CausalTransformer(**options, document_end_id=END, dtype=dtype), scale=0.2
        )
        captured = CapturedLayer(model.backbone, CompilePolicy(jit_compile))
        # The first call runs layer by layer, the second is traced; the third has other documents.
        for batch in (ids, ids, ids.flip(1)):
            hidden = captured(batch, training=True)
        assert captured.replayed
        (hidden.float() * factors).sum().backward()
        return [hidden.float(), *(weight.value.grad for weight in model.backbone.weights)]

    exact, packed = run("float32"), run("mixed_bfloat16")
    monkeypatch.setattr(attention, "has_flash_attention", lambda *kind: False)
    masked = run("mixed_bfloat16")
    for x, mine, other in zip(exact, packed, masked, strict=True):
        assert 0 < (mine - x).norm() < 1.5 * (other - x).norm()
