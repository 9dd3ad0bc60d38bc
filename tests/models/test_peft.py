"""Adapters of peft: only they are trained, and all that peft does with them afterwards works."""

import keras
import pytest
import torch
import transformers

from keras_llm import losses, models

from . import transformers_zoo as zoo

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.torch_only,
    # peft asks transformers by a name of before.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]


def adapted(name="llama", targets=("q_proj", "v_proj"), **kwargs):
    """A model with adapters, one with those switched off, and what it was before."""
    hf = zoo.make(name)
    base = {n: p.detach().clone() for n, p in hf.named_parameters()}
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM", **kwargs
    )
    torch.manual_seed(1)
    return peft.get_peft_model(hf, config), base


def fitted(model, epochs=3, name="llama"):
    trained = models.from_transformers(model)
    trained.compile(keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy())
    trained.fit(zoo.batch(name), batch_size=4, epochs=epochs, verbose=0)
    return trained


def by_hand(model, epochs=3, name="llama"):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    for _ in range(epochs):
        optimizer.zero_grad()
        model(**zoo.batch(name)).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model, name="llama"):
    inputs = {k: v for k, v in zoo.batch(name).items() if k != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def assert_same(model, reference):
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-6, msg=name)


CASES = {
    "attention": ("llama", ("q_proj", "v_proj"), {}),
    "gpt2": ("gpt2", ("c_attn",), {"fan_in_fan_out": True}),
    "head": ("llama", ("q_proj", "lm_head"), {}),
    "whole head": ("llama", ("q_proj",), {"modules_to_save": ["lm_head"]}),
    "dora": ("llama", ("q_proj",), {"use_dora": True}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.quick(3)
def test_adapters_learn_as_by_hand_and_the_base_keeps_its_bits(case, tmp_path):
    name, targets, options = CASES[case]
    model, base = adapted(name, targets, **options)
    reference, _ = adapted(name, targets, **options)
    trained = fitted(model, name=name)
    assert_same(model, by_hand(reference, name=name))
    assert len(trained.trainable_variables) == sum(p.requires_grad for p in model.parameters())
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            plain = parameter_name.removeprefix("base_model.model.").replace(".base_layer", "")
            plain = plain.replace(".original_module", "")
            assert torch.equal(parameter, base[plain]), parameter_name

    model.save_pretrained(tmp_path)
    read = peft.PeftModel.from_pretrained(zoo.make(name), tmp_path)
    torch.testing.assert_close(logits(read, name), logits(model, name), rtol=0, atol=0)
    if case != "whole head":
        merged = model.merge_and_unload()
        torch.testing.assert_close(logits(merged, name), logits(read, name), rtol=1e-4, atol=1e-5)


def test_adapters_that_were_loaded_to_be_used_say_how_they_are_trained(tmp_path):
    adapted()[0].save_pretrained(tmp_path)

    def read(**options):
        return peft.PeftModel.from_pretrained(zoo.make("llama"), tmp_path, **options)

    with pytest.warns(UserWarning, match=r"trainable weights\. .*is_trainable=True"):
        fitted(read(), 1)
    model = read(is_trainable=True)
    fitted(model)
    assert_same(model, by_hand(read(is_trainable=True)))


def test_an_adapter_on_the_head_needs_its_logits_and_explain_says_so():
    model, _ = adapted(targets=("q_proj", "lm_head"))
    assert "not a torch.nn.Linear" in fitted(model, 1).step.why_logits()
    model, _ = adapted()
    assert fitted(model, 1).step.why_logits() == ""


def test_adapters_with_checkpointing():
    model, _ = adapted()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    model.enable_input_require_grads()
    fitted(model)
    reference, _ = adapted()
    assert_same(model, by_hand(reference))


def test_prompt_learning_is_refused_by_name():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match=r"PROMPT_TUNING learns a prompt.*LoraConfig"):
        models.from_transformers(peft.get_peft_model(zoo.make("llama"), config))


def test_an_adapter_with_a_loss_of_its_own_is_refused():
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    with pytest.raises(ValueError, match=r"labels alone.*ADALORA, whose own forward"):
        models.from_transformers(peft.get_peft_model(zoo.make("llama"), config))


def test_a_model_with_adapters_names_how_to_save_it(tmp_path):
    model, _ = adapted()
    with pytest.raises(NotImplementedError, match="save_pretrained"):
        fitted(model, 1).save(tmp_path / "model.keras")


def test_a_model_is_saved_and_read_again(tmp_path):
    model = fitted(zoo.make("bart"), 1, name="bart")
    model.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras")
    batch = zoo.batch("bart")
    assert read.evaluate(batch, verbose=0) == model.evaluate(batch, verbose=0)
    assert isinstance(read.hf, transformers.BartForConditionalGeneration)


def test_weights_are_saved_and_read_again(tmp_path):
    model, _ = adapted()
    trained = fitted(model)
    trained.save_weights(tmp_path / "model.weights.h5")
    other = models.from_transformers(adapted()[0])
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same(other.hf, model)
