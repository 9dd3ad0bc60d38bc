"""A `CausalTransformer` as a Hugging Face folder of the Llama architecture, and back."""

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_llm.backend.keras_private import all_layers
from keras_llm.json_files import read_json
from keras_llm.models.causal_backbone import CausalConfig
from keras_llm.models.llama_config import OWN_NAMES, from_llama, to_llama
from keras_llm.models.llama_tensors import LlamaTensor, llama_tensors
from keras_llm.models.safetensors_files import WEIGHT_FILES, open_tensors, write_tensors
from keras_llm.replaced_files import replaced_files

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# Their names in the files, and as attributes of our tokenizers; Hugging Face's have the former.
SPECIAL_IDS = {"bos_token_id": "start_id", "eos_token_id": "end_id", "pad_token_id": "pad_id"}


def write_folder(model: Any, folder: str | os.PathLike, tokenizer: Any = None) -> None:
    """What `CausalTransformer.save_pretrained` does."""
    config = model.backbone.config
    ids = _special_ids(tokenizer, config)
    if any(getattr(layer, "quantization_mode", None) for layer in all_layers(model)):
        raise ValueError(
            "A quantised model cannot be written as a Hugging Face folder. Write the folder from "
            "the model before quantize(), and quantise it where it will run."
        )
    tensors = {tensor.name: tensor for tensor in llama_tensors(config, model.tie_embeddings)}
    dtypes = {
        name: keras.backend.standardize_dtype(tensor.weight_of(model).dtype)
        for name, tensor in tensors.items()
    }
    sizes = {
        name: int(np.prod(tensor.shape)) * np.dtype(dtypes[name]).itemsize
        for name, tensor in tensors.items()
    }

    def array(name: str) -> np.ndarray:
        values = keras.ops.convert_to_numpy(tensors[name].weight_of(model))
        return values.T if tensors[name].is_transposed else values

    generation: dict[str, Any] = {"do_sample": False, **ids}
    if config.pad_id is not None and config.pad_id != ids["eos_token_id"]:
        # Padding is never generated here, either.
        generation["suppress_tokens"] = [config.pad_id]
    dtype = dtypes["model.embed_tokens.weight"]
    with replaced_files(folder, obsolete=WEIGHT_FILES) as new:
        write_tensors(new, sizes, array)
        _write_json(new / CONFIG, to_llama(config, model.tie_embeddings, dtype, ids))
        _write_json(new / GENERATION_CONFIG, generation)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)


def read_folder(cls: type, folder: str | os.PathLike, options: dict[str, Any]) -> Any:
    """What `CausalTransformer.from_pretrained` does; `cls` is the class to make."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"folder must be a folder on this machine with a {CONFIG}; a model of the Hub is "
            f"downloaded by huggingface_hub.snapshot_download. Received: folder={str(folder)!r}"
        )
    arguments = from_llama(read_json(folder / CONFIG))
    if fixed := sorted(options.keys() & arguments.keys() - set(OWN_NAMES)):
        raise TypeError(f"The folder decides {', '.join(fixed)}. Received: {options}")
    arguments |= options
    fields = CausalConfig.__dataclass_fields__.keys() & arguments.keys()
    config = CausalConfig(**{name: arguments[name] for name in fields})
    with open_tensors(folder) as tensors:
        if config.num_layers > len(tensors):
            raise ValueError(
                f"config.json must have no more num_hidden_layers than there are tensors, "
                f"{len(tensors)}. Received: num_hidden_layers={config.num_layers}"
            )
        expected = list(llama_tensors(config, arguments["tie_embeddings"]))
        _check_tensors(tensors, expected, arguments["tie_embeddings"])
        model = cls(**arguments)
        for tensor in expected:
            values = tensors[tensor.name][:]
            # Not every backend takes numpy's bfloat16; nothing is lost.
            values = values.astype(np.promote_types(values.dtype, "float32"), copy=False)
            tensor.weight_of(model).assign(values.T if tensor.is_transposed else values)
    return model


def _check_tensors(
    tensors: dict[str, Any], expected: list[LlamaTensor], tie_embeddings: bool
) -> None:
    """Raises `ValueError` unless the tensors are those of the config, in name and shape."""
    shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    # Old checkpoints hold the angles of rotary positions, which follow from the config.
    for name in [name for name in shapes if name.endswith(".rotary_emb.inv_freq")]:
        del shapes[name]
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    if tie_embeddings and head in shapes and shapes[head] == shapes.get(embeddings):
        if not np.array_equal(tensors[head][:], tensors[embeddings][:]):
            raise ValueError(
                f"{head} must equal {embeddings} where config.json says tie_word_embeddings=true. "
                "Received: two different matrices; say tie_word_embeddings=false to use both"
            )
        del shapes[head]
    wanted = {tensor.name: tensor.shape for tensor in expected}
    differences = [
        f"{name} {shapes.get(name, 'missing')} where {wanted.get(name, 'none')} is expected"
        for name in sorted(wanted.keys() | shapes.keys())
        if wanted.get(name) != shapes.get(name)
    ]
    if differences:
        raise ValueError(
            "The weights must be those that config.json describes. Received: "
            f"{', '.join(differences[:5])}{' and others' if len(differences) > 5 else ''}"
        )


def _special_ids(tokenizer, config):
    """`bos_token_id` and its like, of a tokenizer of ours or of Hugging Face's, or of none."""
    if tokenizer is None:
        return {**dict.fromkeys(SPECIAL_IDS), "pad_token_id": config.pad_id}
    if not hasattr(tokenizer, "save_pretrained") or not hasattr(tokenizer, "encode"):
        raise TypeError(
            "tokenizer must be a data.Tokenizer, or one of Hugging Face transformers. "
            f"Received: a {type(tokenizer).__name__}"
        )
    # Of Hugging Face's vocab_size leaves out the tokens that were added.
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else tokenizer.vocab_size
    if size > config.vocab_size:
        raise ValueError(
            f"tokenizer must have at most vocab_size={config.vocab_size} ids, the model's. "
            f"Received: a tokenizer of {size} ids"
        )
    ids = {
        theirs: getattr(tokenizer, theirs if hasattr(tokenizer, theirs) else ours)
        for theirs, ours in SPECIAL_IDS.items()
    }
    # Where the model has one, attention masks it.
    return ids if config.pad_id is None else ids | {"pad_token_id": config.pad_id}


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
