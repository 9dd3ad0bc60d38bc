"""Which tensor of a Llama checkpoint is which weight of a `CausalTransformer`."""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from keras_llm.models.causal_backbone import CausalConfig


class LlamaTensor(NamedTuple):
    """One tensor, as Hugging Face's Llama names and shapes it."""

    name: str
    shape: tuple[int, ...]
    weight: str  # where the model has it: attributes, separated by points
    block: int | None = None  # if `weight` begins in a block, which
    # PyTorch multiplies by [out, in], Keras by [in, out].
    is_transposed: bool = False

    def weight_of(self, model: Any) -> Any:
        """The weight, of the model that is given."""
        owner = model if self.block is None else model.backbone.blocks[self.block]
        return attrgetter(self.weight)(owner)


def llama_tensors(config: CausalConfig, tie_embeddings: bool) -> Iterator[LlamaTensor]:
    """The tensors of a checkpoint of these sizes.

    Rotary positions rotate the same planes there and here (i and i + head_dim / 2), so no
    coordinate changes its place.
    """
    width, d_ff = config.d_model, config.d_ff
    key_value_width = config.num_key_value_heads * (width // config.num_heads)
    table = (config.vocab_size, width)
    yield LlamaTensor("model.embed_tokens.weight", table, "backbone.token_embedding.embeddings")
    matrices = {
        "self_attn.q_proj": ((width, width), "self_attention.query"),
        "self_attn.k_proj": ((key_value_width, width), "self_attention.key"),
        "self_attn.v_proj": ((key_value_width, width), "self_attention.value"),
        "self_attn.o_proj": ((width, width), "self_attention.output_projection"),
        "mlp.gate_proj": ((d_ff, width), "feed_forward.gate"),
        "mlp.up_proj": ((d_ff, width), "feed_forward.up"),
        "mlp.down_proj": ((width, d_ff), "feed_forward.down"),
    }
    norms = {
        "input_layernorm": "self_attention_norm",
        "post_attention_layernorm": "feed_forward_norm",
    }
    for i in range(config.num_layers):
        for name, layer in norms.items():
            yield LlamaTensor(f"model.layers.{i}.{name}.weight", (width,), f"{layer}.scale", i)
        for name, (shape, layer) in matrices.items():
            name = f"model.layers.{i}.{name}.weight"
            yield LlamaTensor(name, shape, f"{layer}.kernel", i, is_transposed=True)
    yield LlamaTensor("model.norm.weight", (width,), "backbone.norm.scale")
    if not tie_embeddings:
        yield LlamaTensor("lm_head.weight", table, "head.kernel", is_transposed=True)
