"""Half precision, gradient checkpointing and compiled layers of models of transformers."""

import functools

import keras
import pytest
import torch

from keras_llm import losses, models, optimizers

from . import transformers_zoo as zoo

pytestmark = pytest.mark.torch_only


def compiled(hf, dtype=None, **kwargs):
    model = models.from_transformers(hf, dtype=dtype)
    model.compile(keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy(), **kwargs)
    return model


def changes(hf, name="llama", **kwargs):
    before = {n: p.detach().clone() for n, p in hf.named_parameters()}
    loss = compiled(hf, **kwargs).fit(zoo.batch(name), batch_size=4, verbose=0).history["loss"]
    return loss[0], {n: before[n] - p.detach() for n, p in hf.named_parameters()}


def test_a_mixed_policy_is_autocast():
    hf = zoo.make("llama")
    by_hand, seen = zoo.twin(hf), []
    with torch.autocast("cpu", torch.bfloat16):
        loss = by_hand(**zoo.batch("llama")).loss
    loss.backward()
    layer = hf.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda part, inputs, output: seen.append(output.dtype))
    ours, changed = changes(hf, dtype="mixed_bfloat16")
    assert torch.bfloat16 in seen
    assert ours == pytest.approx(loss.item(), rel=2e-3)
    for name, parameter in by_hand.named_parameters():
        largest = parameter.grad.abs().max()
        assert (changed[name] - parameter.grad).abs().max() <= 0.02 * largest, name


def test_weights_of_half_precision_stay_so_and_learn():
    hf = zoo.make("llama").bfloat16()
    model = models.from_transformers(hf)
    model.compile(optimizers.AdamW(1e-2), losses.MaskedSparseCategoricalCrossentropy())
    found = model.fit(zoo.batch("llama"), batch_size=4, epochs=5, verbose=0).history["loss"]
    assert {p.dtype for p in hf.parameters()} == {torch.bfloat16}
    assert found[-1] < found[0] - 0.1
    state = {v.dtype for v in model.optimizer.variables if "iteration" not in v.path}
    assert state == {"float32"}


def checkpointed(hf):
    """By its name in transformers 5, which warns of the one before."""
    enable = getattr(hf, "activation_checkpointing_enable", hf.gradient_checkpointing_enable)
    enable()


def kept_for_backward(hf):
    """Bytes that forward keeps, by hooks; the loss by one pass keeps as much on both sides."""
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = compiled(hf)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.fit(zoo.batch("llama"), batch_size=4, epochs=3, verbose=0)
    return sum(sizes.values())


def test_checkpointing_keeps_its_memory_and_the_gradients():
    hf = zoo.make("llama")
    checkpointed(hf)
    loss, changed = changes(hf)
    plain_loss, plain = changes(zoo.make("llama"))
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(changed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    less = zoo.make("llama")
    checkpointed(less)
    assert kept_for_backward(less) < 0.8 * kept_for_backward(zoo.make("llama"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
# While t5 runs, its head is replaced, which concerns what traces it, and not the kernels.
@pytest.mark.parametrize(("name", "backend"), [("llama", "inductor"), ("t5", "aot_eager")])
def test_a_compiled_model_has_the_same_gradients(name, backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    hf = zoo.make(name)
    by_hand = zoo.twin(hf)
    truth = by_hand(**zoo.batch(name)).loss
    truth.backward()
    loss, changed = changes(hf, name, jit_compile=True)
    assert loss == pytest.approx(truth.item(), rel=1e-5)
    for part, parameter in by_hand.named_parameters():
        torch.testing.assert_close(changed[part], parameter.grad, rtol=1e-4, atol=1e-6, msg=part)


def test_half_precision_is_the_policy_and_is_saved(tmp_path):
    hf = zoo.make("llama").bfloat16()
    model = compiled(hf)
    assert model.dtype_policy.name == "bfloat16"
    assert "bfloat16" in str(model.explain(show=False)).split("precision")[1].split("\n")[0]
    model.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras")
    assert {p.dtype for p in read.hf.parameters()} == {torch.bfloat16}
    ids = zoo.batch("llama")["input_ids"]
    with torch.no_grad():
        assert torch.equal(read(ids), hf(ids).logits)


def test_explain_knows_before_the_first_batch_that_there_is_no_graph():
    assert "a model of transformers runs as it is" in str(
        compiled(zoo.make("llama")).explain(show=False)
    )
