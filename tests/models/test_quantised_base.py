"""Adapters beside a base of 4 or 8 bits of bitsandbytes, next to the same loop by hand."""

import keras
import numpy as np
import pytest
import torch
import transformers

from keras_llm import losses, models
from keras_llm.training import SanityWarning

from . import transformers_zoo as zoo

peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.torch_only,
    # Of peft and bitsandbytes, about names of before in transformers and PyTorch.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:DeprecationWarning"),
]
KINDS = {
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits, twice": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "8 bits": {"load_in_8bit": True},
}
BATCH = zoo.batch("llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(
        vocab_size=89,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def base(folder, kind):
    if "load_in_4bit" in kind:
        kind = {**kind, "bnb_4bit_compute_dtype": torch.float32}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=transformers.BitsAndBytesConfig(**kind), dtype=torch.float32
    )


def adapted(folder, kind):
    hf = peft.prepare_model_for_kbit_training(base(folder, kind), use_gradient_checkpointing=False)
    torch.manual_seed(1)
    return peft.get_peft_model(hf, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))


def compiled(hf):
    model = models.from_transformers(hf)
    model.compile(keras.optimizers.SGD(0.5), losses.MaskedSparseCategoricalCrossentropy())
    return model


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_is_that_of_a_loop_also_after_evaluations(folder, kind):
    twin = adapted(folder, kind).train()
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.5)
    losses_of_steps, evaluated = [], []
    for _ in range(4):
        optimizer.zero_grad()
        loss = twin(**BATCH).loss
        loss.backward()
        optimizer.step()
        losses_of_steps.append(loss.item())
        # On a CPU an evaluation of bitsandbytes' 4 bits would end all training.
        twin.train("load_in_4bit" in kind)
        with torch.no_grad():
            evaluated.append(twin(**BATCH).loss.item())
        twin.train()
    model = compiled(adapted(folder, kind))
    frozen = {n: p.clone() for n, p in model.hf.named_parameters() if not p.requires_grad}
    history = model.fit(BATCH, batch_size=8, epochs=4, validation_data=(BATCH,), verbose=0).history
    np.testing.assert_allclose(history["loss"], losses_of_steps, rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"], evaluated, rtol=1e-5)
    for name, parameter in model.hf.named_parameters():
        if parameter.requires_grad:
            theirs = twin.get_parameter(name)
            torch.testing.assert_close(parameter, theirs, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert torch.equal(parameter, frozen[name]), name


def test_samples_between_two_fits_leave_the_gradients_right(folder):
    kind = KINDS["4 bits"]
    model, other = compiled(adapted(folder, kind)), compiled(adapted(folder, kind))
    model.hf.eval().generate(input_ids=BATCH["input_ids"][:1, :4], max_new_tokens=2)
    for each in (model, other):
        each.train_on_batch(BATCH)
    for name, parameter in other.hf.named_parameters():
        torch.testing.assert_close(model.hf.get_parameter(name), parameter, msg=name)


def test_quantised_weights_are_counted_and_without_adapters_told(folder):
    hf = base(folder, KINDS["4 bits"])
    model = compiled(hf)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert model.count_params() == whole
    with pytest.warns(SanityWarning, match=r"are not trained: fit changes only .* of "):
        model.fit(BATCH, verbose=0)
    # The adapters' model has something to train in their place.
    compiled(adapted(folder, KINDS["4 bits"])).fit(BATCH, verbose=0)


def test_layers_of_keras_that_are_quantised_are_told():
    model = models.CausalTransformer(20, 8, 1, 2)
    ids = np.random.default_rng(0).integers(0, 20, (2, 7))
    x, y = ids[:, :-1], ids[:, 1:]
    model(x)
    model.backbone.blocks[0].feed_forward.up.quantize("int8")
    teacher = models.CausalTransformer(20, 8, 1, 2)
    teacher(x)
    for each in (model, models.Distillation(teacher, model)):
        each.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
        with pytest.warns(SanityWarning, match="Quantised weights are not trained"):
            each.fit(x, y, verbose=0)
