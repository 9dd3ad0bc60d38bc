"""What the backbones of both transformers share: a config, and the parts that are made from it."""

import dataclasses
from typing import Any, ClassVar, Self

import keras

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.backend.keras_private import all_layers
from keras_llm.layers.attention import check_heads
from keras_llm.layers.feed_forward import default_d_ff
from keras_llm.layers.rotary_embedding import RotaryEmbedding
from keras_llm.layers.transformer_block import TransformerBlock
from keras_llm.models.checks import check_special_id


@dataclasses.dataclass
class TransformerConfig:
    """Sizes and options of a backbone; the docstring of its transformer describes each of them.

    Raises:
        ValueError: a value that is out of its range.
    """

    vocab_size: int
    d_model: int = 512
    num_layers: int = 6
    num_heads: int = 8
    max_length: int = 1024
    num_key_value_heads: int | None = None
    d_ff: int | None = None
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    epsilon: float = 1e-6
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "max_length"):
            check_positive_int(getattr(self, name), name)
        check_number(self.dropout, "dropout", "[0, 1)")
        check_number(self.rope_theta, "rope_theta", "(0, inf)")
        check_number(self.epsilon, "epsilon", "[0, inf)")
        # A saved model keeps its sizes, whatever the defaults become.
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_heads
        check_heads(self.d_model, self.num_heads, self.num_key_value_heads)
        if self.d_ff is None:
            self.d_ff = default_d_ff(self.d_model)
        check_positive_int(self.d_ff, "d_ff")
        if self.pad_id is not None:
            check_special_id(self.pad_id, self.vocab_size, "pad_id")


class Backbone(keras.Model):
    """Base class: a model from ids to hidden vectors, made from one config, which it saves.

    Args:
        config: A `TransformerConfig` of the kind that `config_class` names.
        **kwargs: Keras's own: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: the dtype is float64, and Keras computes its products in float32.
    """

    config_class: ClassVar[type[TransformerConfig]] = TransformerConfig
    # The hidden vector of a token depends on that token and those before it: labels are the tokens
    # that come next.
    is_causal = True

    def __init__(self, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        is_exact = keras.backend.result_type("float64", "float64") == "float64"
        if self.compute_dtype == "float64" and not is_exact:
            raise ValueError(
                "dtype must be float32, bfloat16, float16 or a mixed policy: on the "
                f"{keras.backend.backend()} backend Keras computes products of float64 in float32. "
                "Received: dtype='float64'"
            )
        self.config = config
        dtype = self.dtype_policy
        head_dim = config.d_model // config.num_heads
        self.rotary = RotaryEmbedding(head_dim, config.rope_theta, dtype=dtype)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=dtype)

    def make_blocks(self, name: str, cross_attention: bool = False) -> list[TransformerBlock]:
        """`num_layers` blocks, named by `name` and their number."""
        config = self.config
        return [
            TransformerBlock(
                config.d_model,
                config.num_heads,
                config.num_key_value_heads,
                config.d_ff,
                config.dropout,
                config.epsilon,
                # As in GPT-2: the outputs of 2 num_layers parts are added, and this keeps the
                # size of their sum independent of the depth.
                residual_stddev=0.02 / (2 * config.num_layers) ** 0.5,
                cross_attention=cross_attention,
                dtype=self.dtype_policy,
                name=f"{name}_{i}",
            )
            for i in range(config.num_layers)
        ]

    def build(self, input_shape: Any = None) -> None:
        """Builds what has no weights, which `quantize` would miss; subclasses build the rest."""
        self.rotary.build(None)
        self.dropout.build(None)

    def get_config(self) -> dict[str, Any]:
        """The fields of the config, and Keras's own arguments."""
        return {
            **super().get_config(),
            **dataclasses.asdict(self.config),
            **quantized_dtype(self),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuilds the backbone from `get_config`'s dictionary."""
        fields = {field.name for field in dataclasses.fields(cls.config_class)}
        options = {name: value for name, value in config.items() if name in fields}
        rest = {name: value for name, value in config.items() if name not in fields}
        return cls(cls.config_class(**options), **rest)


def quantized_dtype(model: keras.Model) -> dict[str, Any]:
    """The `dtype` to save for a model of which some layers are quantized; for others nothing.

    Keras saves the dtype policies of a model's layers only as far as the constructor repeats them.
    """
    quantized = {
        layer.path: layer.dtype_policy
        for layer in all_layers(model)
        if getattr(layer, "quantization_mode", None) is not None
    }
    policy = model.dtype_policy
    if not quantized or isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return {}
    policies = keras.dtype_policies.DTypePolicyMap(policy.name, quantized)
    return {"dtype": keras.dtype_policies.serialize(policies)}
