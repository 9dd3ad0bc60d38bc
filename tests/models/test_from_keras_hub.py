"""KerasHub's models are trained in place, per token, and with the numbers of their own calls."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import losses, metrics, models, optimizers
from keras_llm.checks.sanity_warning import SanityWarning
from tests.models import keras_hub_tasks
from tests.models.keras_hub_tasks import (
    TASKS,
    V,
    batch,
    own_task,
    task_with_preprocessor,
    whole_logits_loss,
)

hub = keras_hub_tasks.import_keras_hub()
# What Keras says when T5's own layers are made.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
# The backbones that every backend trains.
THREE = ["gpt2", "llama3", "gemma"]
LOSS = losses.MaskedSparseCategoricalCrossentropy(ignore_index=-100)


def wrapped(name, optimizer="sgd", **kwargs):
    task = keras_hub_tasks.task(name)
    model = models.from_keras_hub(task)
    model.compile(optimizer, LOSS, metrics=[metrics.Perplexity()], **kwargs)
    return task, model


def numbers(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def continued(task, prompt):
    """What the task's own `generate` makes of three ids, and the greedy choice by its logits."""
    mask = np.tile(np.arange(8) < 3, (len(prompt), 1))
    inputs = {"token_ids": np.where(mask, prompt, 0), "padding_mask": mask.astype("int32")}
    ids = task.generate(inputs, stop_token_ids=None)["token_ids"]
    greedy = numbers(task({"token_ids": ids, "padding_mask": np.ones_like(ids)})).argmax(-1)
    return ids[:, 3:], greedy[:, 2:-1]


@pytest.mark.parametrize("name", THREE)
@pytest.mark.sampled(3)
@pytest.mark.quick(3)
def test_in_place_with_the_losses_of_whole_logits(name):
    task, model = wrapped(name, optimizers.AdamW(1e-2))
    x, y = batch(task)
    assert model.why_logits() == ""
    np.testing.assert_array_equal(numbers(model(x)), numbers(task(x)))
    if name == "gpt2":
        task.compile(sampler="greedy", jit_compile=False)
        before, greedy = continued(task, x["token_ids"])
        np.testing.assert_array_equal(before, greedy)
    want = whole_logits_loss(task, x, y)
    assert model.evaluate(x, y, batch_size=2, verbose=0)[0] == pytest.approx(want, rel=1e-5)
    history = model.fit(x, y, batch_size=2, epochs=4, verbose=0).history["loss"]
    assert history == sorted(history, reverse=True) and history[-1] < 0.9 * want
    trained = whole_logits_loss(task, x, y)
    assert trained < 0.9 * want
    assert model.evaluate(x, y, batch_size=2, verbose=0)[0] == pytest.approx(trained, rel=1e-5)
    if name == "gpt2":
        after, greedy = continued(task, x["token_ids"])
        np.testing.assert_array_equal(after, greedy)
        assert not np.array_equal(after, before)


@pytest.mark.backend_free
def test_padding_masks_and_plain_ids():
    task, model = wrapped("bart")
    x, y = batch(task)
    # What is masked changes nothing, and what is not does.
    ids, mask = x["encoder_token_ids"], x["encoder_padding_mask"]
    masked = x | {"encoder_token_ids": np.where(mask, ids, 7)}
    seen = x | {"encoder_padding_mask": np.ones_like(mask)}
    first = model.evaluate(x, y, verbose=0)[0]
    assert model.evaluate(masked, y, verbose=0)[0] == pytest.approx(first, rel=1e-6)
    assert abs(model.evaluate(seen, y, verbose=0)[0] - first) > 1e-4

    task, model = wrapped("gpt2")
    x, y = batch(task)
    ones = x | {"padding_mask": np.ones_like(x["padding_mask"])}
    np.testing.assert_array_equal(numbers(model(x["token_ids"])), numbers(task(ones)))


def reference_gradients(task, inputs, y):
    """A hand-written loop's: cross entropy of the task's own call, and what its layers add."""
    import torch

    task.zero_grad()
    inputs = {key: torch.tensor(value) for key, value in inputs.items()}
    logits = task(inputs, training=True)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).flatten())
    (loss + sum(task.losses)).backward()
    return [v.value.grad.numpy().copy() for v in task.trainable_variables]


@pytest.mark.torch_only
@pytest.mark.parametrize(
    ("name", "micro_batch_size"), [*((name, None) for name in TASKS), ("gpt2", 1)]
)
@pytest.mark.quick(4)
def test_gradients_are_those_of_a_loop(name, micro_batch_size):
    task, model = wrapped(name, keras.optimizers.SGD(1.0), micro_batch_size=micro_batch_size)
    x, y = batch(task)
    assert {id(v) for v in model.variables} == {id(v) for v in task.variables}
    for _ in range(2):
        want = reference_gradients(task, x, y)
        before = [v.numpy() for v in task.trainable_variables]
        model.fit(x, y, verbose=0)
        for variable, old, gradient in zip(task.trainable_variables, before, want, strict=True):
            np.testing.assert_allclose(old - variable.numpy(), gradient, atol=1e-5)
    assert model.step.graphs._settings.unchanged()
    if task.losses:
        assert "adds a loss" in model.step.graphs.captured.reason
    else:
        # The second update's are by a graph.
        assert model.step.graphs.captured.reason == "" and all(
            model.step.graphs.captured.graphs.values()
        )


@pytest.mark.torch_only
@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2"])
@pytest.mark.quick(3)
def test_a_graph_has_the_numbers_of_the_layers(name):
    import torch

    from keras_llm.training.torch.captured_layer import CapturedLayer
    from keras_llm.training.torch.compile_policy import CompilePolicy

    model = models.from_keras_hub(keras_hub_tasks.task(name))
    inputs = {key: torch.tensor(value) for key, value in batch(model.task)[0].items()}
    captured = CapturedLayer(model.backbone, CompilePolicy(False))
    for training in (True, False):
        want = model.backbone(inputs, training=training)
        for _ in range(3):
            torch.testing.assert_close(captured(inputs, training), want, rtol=0, atol=1e-6)
    assert captured.replayed and not captured.reason


@pytest.mark.torch_only
def test_a_layer_of_ones_own_made_of_kerashubs_is_not_trusted():
    from keras_llm.backend.layer_settings import unknown_layers

    class Annealed(hub.layers.PositionEmbedding):
        pass

    assert unknown_layers(hub.layers.PositionEmbedding(3)) == ""
    assert unknown_layers(Annealed(3)).startswith("Annealed is not a layer of keras")


# The head


def reversed_embedding(backbone, hidden):
    return backbone.token_embedding(hidden, reverse=True)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("logits_of", "why"),
    [
        (lambda backbone, h: keras.layers.Dense(V, bias_initializer="normal")(h), ""),
        (lambda backbone, h: reversed_embedding(backbone, h * 0.25), ""),
        (
            lambda backbone, h: 5.0 * ops.tanh(reversed_embedding(backbone, h) / 5.0),
            "",
        ),
        (lambda backbone, h: 2 * reversed_embedding(backbone, h), "does more than multiply by a"),
        (lambda backbone, h: keras.layers.Dense(V, "relu")(h), "does more than multiply by a"),
        (lambda backbone, h: keras.layers.Dense(V, kernel_initializer="zeros")(h), "only zeros"),
        (lambda backbone, h: keras.layers.EinsumDense("bld,dv->blv", (None, V))(h), ""),
        (lambda backbone, h: keras.layers.Conv1D(V, 1)(h), "is not known to be a matrix"),
    ],
    ids=["biased", "scaled before", "capped", "scaled", "relu", "zeros", "einsum", "convolution"],
)
@pytest.mark.quick(3)
def test_a_head_is_known_by_its_numbers(logits_of, why):
    task = own_task(logits_of)
    model = models.from_keras_hub(task)
    model.compile("sgd", LOSS, metrics=[metrics.Perplexity()])
    x, y = batch(task)
    assert (why in model.why_logits()) if why else model.why_logits() == ""
    assert model.explain(show=False)["How it runs"]["logits"].value == (
        "whole" if why else "one pass"
    )
    loss = model.evaluate(x, y, verbose=0)[0]
    assert loss == pytest.approx(whole_logits_loss(task, x, y), rel=1e-5)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "matrix", "soft_cap"),
    [("llama3", "reverse_embeddings", None), ("gemma2", "embeddings", 30.0)],
)
def test_untied_and_capped(name, matrix, soft_cap):
    model = models.from_keras_hub(keras_hub_tasks.task(name))
    assert model.why_logits() == "" and model.head_matrix().soft_cap == pytest.approx(soft_cap)
    np.testing.assert_array_equal(
        numbers(model.head.kernel).T if matrix == "embeddings" else numbers(model.head.kernel),
        numbers(getattr(model.task.backbone.token_embedding, matrix)),
    )


@pytest.mark.backend_free
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_other_precisions(dtype):
    model = models.from_keras_hub(keras_hub_tasks.backbone("gpt2", dtype=dtype))
    assert model.why_logits() == "" and model.dtype_policy.name == dtype
    capped = models.from_keras_hub(keras_hub_tasks.backbone("gemma2", dtype=dtype))
    assert capped.why_logits() == "" and capped.head_matrix().soft_cap == 30.0


@pytest.mark.backend_free
def test_what_changes_the_head_later_is_seen():
    model = models.from_keras_hub(keras_hub_tasks.task("gpt2"))
    embedding = model.task.backbone.token_embedding
    embedding.enable_lora(2)
    embedding.lora_embeddings_b.assign(np.ones(embedding.lora_embeddings_b.shape))
    hidden = np.random.default_rng(0).standard_normal((1, 3, 16)).astype("float32")
    want = hidden @ numbers(model.head.kernel)
    np.testing.assert_allclose(numbers(model.head(hidden)), want, rtol=1e-5, atol=1e-5)
    model = models.from_keras_hub(keras_hub_tasks.task("gpt2"))
    model.task.backbone.token_embedding.quantize("int8")
    assert model.why_logits() == "the head, a ReversibleEmbedding, is quantised"


# What it is called with


@pytest.mark.backend_free
def test_a_backbone_gets_its_task():
    for name, kind in (("gpt2", "GPT2CausalLM"), ("t5", "T5Seq2SeqLM")):
        backbone = keras_hub_tasks.backbone(name)
        model = models.from_keras_hub(backbone)
        assert type(model.task).__name__ == kind and model.task.backbone is backbone


@pytest.mark.backend_free
def test_refusals():
    bert = hub.models.BertBackbone(V, 1, 2, 8, 8)
    with pytest.raises(TypeError, match=r"Received: BertBackbone, which has none\. Use a KerasHub"):
        models.from_keras_hub(bert)
    with pytest.raises(TypeError, match="Received: BertTextClassifier, a task of another kind"):
        models.from_keras_hub(hub.models.BertTextClassifier(bert, num_classes=2))
    with pytest.raises(TypeError, match=r"a CausalLM or Seq2SeqLM of keras_hub.* Sequential"):
        models.from_keras_hub(keras.Sequential())


@pytest.mark.backend_free
def test_without_keras_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub.models", None)
    with pytest.raises(ImportError, match="pip install --no-deps keras-hub"):
        models.from_keras_hub(None)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "change", "error", "match"),
    [
        ("gpt2", lambda x: {"token_ids": x["token_ids"]}, ValueError, r"Received: \['token_ids'\]"),
        ("gpt2", lambda x: x | {"token_ids": 99 + x["token_ids"]}, ValueError, r"\[0, 41\)"),
        ("gpt2", lambda x: x["token_ids"] * 0.5, TypeError, "must be integers"),
        ("gpt2", lambda x: ["some text"] * 4, ValueError, "has no preprocessor"),
        ("bart", lambda x: x["decoder_token_ids"], ValueError, "Received: Tensor|ndarray"),
    ],
)
def test_wrong_inputs(name, change, error, match):
    task, model = wrapped(name)
    x, y = batch(task)
    x = change(x)
    with pytest.raises(error, match=match):
        model.fit(x, None if isinstance(x, list) else y, verbose=0)


def test_an_id_outside_the_vocabulary_is_never_taken_for_another():
    task, model = wrapped("gpt2")
    x, y = batch(task)
    assert np.isfinite(model.evaluate(x, y, verbose=0)[0])
    x["token_ids"][1, 2] = V
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match=rf"{V} at position \(1, 2\)"):
            model.evaluate(x, y, verbose=0)
    else:
        # In a compiled graph ids have no values.
        assert np.isnan(model.evaluate(x, y, verbose=0)[0])


@pytest.mark.backend_free
def test_labels_that_are_not_shifted_are_noticed():
    task, model = wrapped("gpt2")
    x, _ = batch(task)
    with pytest.warns(SanityWarning, match="shift"):
        model.fit(x, x["token_ids"], verbose=0)


@pytest.mark.backend_free
def test_explain_and_trace_have_the_authors_names():
    task, model = wrapped("gemma")
    traced = model.trace(batch(task), show=False)
    assert "decoder_block_0" in str(traced) and "token_embedding" in str(traced)
    assert "teacher forcing" in str(traced)


# Texts, and saving


@pytest.mark.backend_free
def test_texts():
    task = task_with_preprocessor()
    model = models.from_keras_hub(task)
    model.compile("sgd", LOSS, metrics=[metrics.Perplexity()])
    texts = ["ab ab cd", "f"]
    x, y, weights = task.preprocessor(texts)
    assert y.shape == (2, 8) and np.asarray(weights).sum() == 7 + 2
    labels = np.where(weights, y, -100)
    want = model.evaluate(x, labels, verbose=0)
    assert model.evaluate(texts, verbose=0) == pytest.approx(want, rel=1e-6)
    assert model.evaluate(np.array(texts), verbose=0) == pytest.approx(want, rel=1e-6)
    np.testing.assert_array_equal(model.predict(texts, verbose=0), model.predict(x, verbose=0))
    history = model.fit(texts, validation_data=(texts,), epochs=2, verbose=0).history
    assert history["loss"][0] == pytest.approx(want[0], rel=1e-6)
    assert history["val_loss"][-1] < history["loss"][0]
    with pytest.raises(ValueError, match="Labels and weights are made from the texts"):
        model.fit(texts, y, verbose=0)


@pytest.mark.backend_free
def test_a_preprocessor_that_cannot_run(monkeypatch):
    task = task_with_preprocessor()

    def call(*arguments, **named):
        raise ImportError("GPT2Tokenizer requires tensorflow.")

    monkeypatch.setattr(task.preprocessor, "call", call)
    with pytest.raises(
        ImportError, match=r"give ids, .*data\.causal_lm(?s:.*)GPT2Tokenizer requires"
    ):
        models.from_keras_hub(task).predict(["ab"])


@pytest.mark.backend_free
def test_saved_and_loaded(tmp_path):
    task = task_with_preprocessor()
    model = models.from_keras_hub(task, name="mine")
    model.compile(optimizers.AdamW(1e-2), LOSS)
    texts = ["ab ab cd", "f e d"]
    model.fit(texts, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.name == "mine" and again.task is not task
    assert again.evaluate(texts, verbose=0) == model.evaluate(texts, verbose=0)
    first, second = (m.fit(texts, epochs=2, verbose=0).history["loss"] for m in (model, again))
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.backend_free
def test_what_cannot_be_saved_says_so(tmp_path):
    model = models.from_keras_hub(own_task(reversed_embedding))
    model.task.get_config = lambda: 1 / 0
    with pytest.raises(ValueError, match=r"OwnLM cannot be saved.*save_to_preset\(folder\)"):
        model.save(tmp_path / "model.keras")


def test_what_the_task_can_do_is_named():
    _, model = wrapped("gpt2")
    with pytest.raises(AttributeError, match=r"'generate'; .* has: model\.task\.generate$"):
        model.generate(["text"])
    with pytest.raises(AttributeError, match=r"no attribute 'nothing_like_this'$"):
        model.nothing_like_this  # noqa: B018
