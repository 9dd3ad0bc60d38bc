"""`config.json` of a Llama checkpoint, from our options and to them."""

from fractions import Fraction
from typing import Any

from keras_llm.arguments import check_positive_int
from keras_llm.models.causal_backbone import CausalConfig

# Our options, and their names in the file.
NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_length": "max_position_embeddings",
    "d_ff": "intermediate_size",
}
# Those of which the file may say nothing: what Llama then has. None is for as many as heads.
DEFAULTS = {
    "num_key_value_heads": ("num_key_value_heads", None),
    "epsilon": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
# What Llama has no place for. No other program reads them.
OWN, OWN_NAMES = "keras_llm", ("dropout", "pad_id", "document_end_id")
# What else Llama's config can say, and what it must say for its model to be ours. The first value
# is the one that we write, and that silence stands for.
FIXED = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (None, 1),
    "quantization_config": (None,),
    "auto_map": (None,),
}
# Without a sliding window Mistral is Llama; a file that does not mention the window has one.
SLIDING_WINDOW = {"llama": None, "mistral": 4096}
# The second is version 5's; where both are there, transformers reads the first.
ROPE_NAMES = ("rope_scaling", "rope_parameters")
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
WAY_OUT = (
    "Such a model is trained in place: "
    "models.from_transformers(AutoModelForCausalLM.from_pretrained(folder))"
)


def to_llama(
    config: CausalConfig, tie_embeddings: bool, dtype: str, ids: dict[str, Any]
) -> dict[str, Any]:
    """The dictionary of `config.json`.

    Args:
        config: The backbone's.
        tie_embeddings: Whether the head's kernel is the embedding table.
        dtype: The weights'.
        ids: `bos_token_id` and its like; None, or Llama's own defaults would stand for them.
    """
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.d_model // config.num_heads,
        "rms_norm_eps": config.epsilon,
        "tie_word_embeddings": tie_embeddings,
        # The first is how transformers 5 says it, the second how all others do.
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "dtype": dtype,
        "torch_dtype": dtype,
        **{name: values[0] for name, values in FIXED.items() if values[0] is not None},
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **ids,
        OWN: {name: getattr(config, name) for name in OWN_NAMES},
    }


def from_llama(llama: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, from the dictionary of `config.json`.

    Raises:
        ValueError: a size is missing, or the architecture is not `CausalTransformer`'s.
    """
    if missing := [name for name in NAMES.values() if name not in llama]:
        raise ValueError(f"config.json must have {missing}. Received: {sorted(llama)}. {WAY_OUT}")
    if differences := [*_differences(llama)]:
        raise ValueError(
            "config.json must describe the architecture of CausalTransformer. Received: "
            f"{', '.join(differences)}. {WAY_OUT}"
        )
    own = _dictionary(llama, OWN)
    arguments = {
        **{ours: llama[theirs] for ours, theirs in NAMES.items()},
        **{ours: llama.get(theirs, default) for ours, (theirs, default) in DEFAULTS.items()},
        "rope_theta": _rope_theta(llama),
        **{name: own[name] for name in OWN_NAMES if name in own},
    }
    if not isinstance(arguments["tie_embeddings"], bool):
        value = arguments["tie_embeddings"]
        raise ValueError(
            f"config.json must have a boolean tie_word_embeddings. Received: {value!r:.80}"
        )
    return arguments


def _dictionary(llama, name):
    """A dictionary in the file, empty where there is none."""
    value = llama.get(name)
    if not isinstance(value, dict | None):
        raise ValueError(f"config.json must have a dictionary {name}. Received: {value!r:.80}")
    return value or {}


def _differences(llama):
    """What the model has and ours has not, each as `name=value`."""
    model_type = llama.get("model_type")
    if model_type not in list(SLIDING_WINDOW):  # a list compares what cannot be hashed, too
        yield f"model_type={model_type!r}"
        return
    architectures = llama.get("architectures") or list(ARCHITECTURES)
    if not isinstance(architectures, list) or any(a not in ARCHITECTURES for a in architectures):
        yield f"architectures={architectures}"
    window = llama.get("sliding_window", SLIDING_WINDOW[model_type])
    if window is not None:
        yield f"sliding_window={window}"
    for name, allowed in FIXED.items():
        if llama.get(name, allowed[0]) not in allowed:
            yield f"{name}={llama[name]!r}"
    for name in ROPE_NAMES:
        rope = {"rope_type": "default", "type": "default", **_dictionary(llama, name)}
        if (rope.pop("rope_type"), rope.pop("type")) != ("default", "default") or (
            rope.keys() - {"rope_theta"}
        ):
            yield f"{name}={llama[name]}"
    width, heads = (
        check_positive_int(llama[name], name) for name in ("hidden_size", "num_attention_heads")
    )
    head_dim = llama.get("head_dim")
    if head_dim is not None and check_positive_int(head_dim, "head_dim") * heads != width:
        ratio = Fraction(width, heads)
        yield f"head_dim={head_dim} where hidden_size / num_attention_heads is {ratio}"


def _rope_theta(llama):
    """The base of the wavelengths, wherever it stands."""
    for said in (*(_dictionary(llama, name) for name in ROPE_NAMES), llama):
        if said.get("rope_theta") is not None:
            return said["rope_theta"]
    return 10_000.0
