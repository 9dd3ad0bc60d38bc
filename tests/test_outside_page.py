"""The page about models from outside: its programs, and the messages in its table."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import keras
import pytest
import torch
import transformers

from keras_llm import losses, models
from tests.models import transformers_zoo as zoo
from tests.models.folders import build, edit
from tests.refusals import PAGE, assert_complete, assert_raised, raised, table

pytestmark = [
    pytest.mark.torch_only,
    # peft asks transformers by a name of before.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.tensor([[3, 4, 5, 6]])
ROWS = datasets.Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})
PACKED = {"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 0, 1]])}


def made(name):
    """A compiled model."""
    model = models.from_transformers(zoo.make(name))
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    return model


def bert(head):
    return getattr(transformers, head)(transformers.BertConfig(**SMALL, intermediate_size=16))


def llama(**changes):
    hf = zoo.make("llama")
    for name, value in changes.items():
        setattr(hf, name, value)
    return hf


def quantised_head():
    hf = zoo.make("llama")
    packed = torch.zeros(4, 1, dtype=torch.uint8)
    hf.lm_head.weight = torch.nn.Parameter(packed, requires_grad=False)
    return hf


def packed_layer():
    hf = zoo.make("llama")
    # What a layer of bitsandbytes has, after an evaluation on a CPU that multiplies bfloat16.
    layer = hf.model.layers[0].self_attn.q_proj
    layer.support_avx512bf16_for_cpu = True
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    return hf


def on_no_device():
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_layer=1))


def prompt_learner():
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return peft.get_peft_model(zoo.make("llama"), config)


def adapters():
    import peft

    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    return models.from_transformers(peft.get_peft_model(zoo.make("llama"), config))


def adalora():
    import peft

    config = peft.AdaLoraConfig(
        target_modules=["q_proj"], task_type="CAUSAL_LM", init_r=4, total_step=10
    )
    return peft.get_peft_model(zoo.make("llama"), config)


def resized_afterwards():
    model = made("llama")
    model.hf.resize_token_embeddings(90)
    model.fit({"input_ids": IDS, "labels": IDS}, verbose=0)


def whisper():
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=12,
        encoder_layers=1,
        decoder_layers=1,
        decoder_start_token_id=1,
        **ids,
    )
    return transformers.WhisperForConditionalGeneration(config)


def saved_with(**changes):
    config = made("llama").get_config()
    config["hf"] = {**config["hf"], **changes}
    return type(made("llama")).from_config(config)


def without_a_way_to_its_decoder_ids():
    model = made("t5")
    model.reader.decoder_inputs.way = None
    return model


def fit(name, x, y=None):
    return lambda: made(name).fit(x, y, verbose=0)


def wrap(make):
    return lambda: models.from_transformers(make())


def read(damage):
    """Reads a folder of a model of ours, after something was done to it."""

    def call():
        with tempfile.TemporaryDirectory() as folder:
            build().save_pretrained(folder)
            damage(Path(folder))
            models.CausalTransformer.from_pretrained(folder)

    return call


def write_quantized():
    model = build()
    model.backbone.blocks[0].feed_forward.up.quantize("int8")
    model.save_pretrained("never made")


REFUSED = {
    "another kind of model": wrap(lambda: torch.nn.Linear(2, 2)),
    "an encoder": wrap(lambda: bert("BertForMaskedLM")),
    "no head": wrap(lambda: bert("BertModel")),
    "a head that `get_output_embeddings` does not return": wrap(
        lambda: llama(get_output_embeddings=lambda: None)
    ),
    "a quantised head": wrap(quantised_head),
    "a base of 4 bits that was evaluated on a CPU": wrap(packed_layer),
    "inputs that are no tokens": wrap(whisper),
    "several devices, or no weights yet": wrap(on_no_device),
    "prompt learning": wrap(prompt_learner),
    "adapters that add to the loss": wrap(adalora),
    "other parameters than when it was wrapped": resized_afterwards,
    "another dtype than that of the weights": lambda: models.from_transformers(
        zoo.make("llama"), dtype="bfloat16"
    ),
    "several splits": fit("llama", datasets.DatasetDict(train=ROWS, test=ROWS)),
    "no rows": fit("llama", ROWS.select([])),
    "rows that are batches": fit("llama", [{"input_ids": IDS, "labels": IDS}]),
    "a mask of other tokens": fit(
        "llama", {"input_ids": IDS, "labels": IDS, "attention_mask": IDS[:, :3]}
    ),
    "labels that are not of positions": fit("llama", {"input_ids": IDS, "labels": IDS[:, 0]}),
    "no `input_ids`": fit("llama", {"labels": IDS}),
    "labels given twice": fit("llama", {"input_ids": IDS, "labels": IDS}, IDS),
    "an id outside the vocabulary": fit("llama", {"input_ids": IDS + 90, "labels": IDS}),
    "a label outside the vocabulary": fit("llama", {"input_ids": IDS, "labels": IDS + 90}),
    "ids that are no integers": fit("llama", {"input_ids": IDS * 1.0, "labels": IDS}),
    "an encoder-decoder without labels": fit("t5", {"input_ids": IDS}),
    "labels that its decoder's ids cannot be made of": lambda: (
        without_a_way_to_its_decoder_ids().fit({"input_ids": IDS, "labels": IDS}, verbose=0)
    ),
    "packed rows for a model that mixes them": fit("opt", PACKED, IDS),
    "packed rows with a mask": fit(
        "llama", {**PACKED, "attention_mask": torch.tensor([[1, 1, 1, 0]])}, IDS
    ),
    "adapters as one file": lambda: adapters().get_config(),
    "a saved model whose class is not of transformers": lambda: saved_with(class_name="MyModel"),
    "a saved model whose dtype is not of PyTorch": lambda: saved_with(dtype="float31"),
    "a folder of another architecture, for `CausalTransformer.from_pretrained`": read(
        lambda folder: edit(folder, attention_bias=True)
    ),
    "a folder whose weights are not those of its config": read(
        lambda folder: edit(folder, tie_word_embeddings=False)
    ),
    "a folder without safetensors": read(lambda folder: (folder / "model.safetensors").unlink()),
    "a quantised `CausalTransformer` as a folder": write_quantized,
}
OTHER_BACKEND = "JAX and TensorFlow"
TABLE = table("What is refused")


def test_the_table_has_all_that_is_tested_here():
    assert set(TABLE) == {*REFUSED, OTHER_BACKEND}


@pytest.mark.parametrize("what", REFUSED)
def test_the_table_has_the_messages_as_raised(what):
    assert_raised(TABLE[what], REFUSED[what])


def test_the_message_of_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert raised(lambda: models.from_transformers(None)) == TABLE[OTHER_BACKEND]


def test_no_message_is_missing_in_the_table():
    folder = Path(models.__file__).parent / "torch"
    # That file's error is Keras's to read.
    files = [path for path in folder.glob("*.py") if path.name != "outside_layers.py"]
    assert_complete(TABLE, files, at_least=11)


def test_the_programs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, lora, quantised = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    zoo.make("llama").save_pretrained("start")
    rows = {"input_ids": zoo.batch("llama")["input_ids"], "labels": zoo.batch("llama")["labels"]}
    names = {"folder": "start", "train": rows}
    exec(compile(whole, "outside_models.md", "exec"), names)
    read = transformers.AutoModelForCausalLM.from_pretrained("tuned")
    assert torch.equal(read.lm_head.weight, names["hf"].lm_head.weight)
    assert not torch.equal(read.lm_head.weight, zoo.make("llama").lm_head.weight)
    exec(compile(lora, "outside_models.md", "exec"), names)
    trained = {v.path for v in names["model"].trainable_variables}
    assert trained and all("lora" in path for path in trained)
    pytest.importorskip("bitsandbytes")
    names["torch"] = torch
    exec(compile(quantised, "outside_models.md", "exec"), names)
    model = models.from_transformers(names["hf"])
    assert all("lora" in variable.path for variable in model.trainable_variables)
