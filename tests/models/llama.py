"""Hugging Face's Llama with the weights of a `CausalTransformer`: an independent reference."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def to_llama(model):
    """The same function of ids, as a `LlamaForCausalLM` in float32."""
    config = model.get_config()
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["d_model"],
            intermediate_size=config["d_ff"],
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["num_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            max_position_embeddings=config["max_length"],
            rms_norm_eps=config["epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            tie_word_embeddings=config["tie_embeddings"],
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()

    def copy(target, weight, transposed=True):
        values = torch.tensor(weight.numpy())
        with torch.no_grad():
            # Keras multiplies by [in, out], torch by [out, in].
            target.weight.copy_(values.T if transposed else values)

    backbone = model.backbone
    copy(llama.model.embed_tokens, backbone.token_embedding.embeddings, transposed=False)
    for block, layer in zip(backbone.blocks, llama.model.layers, strict=True):
        attention, mlp = block.self_attention, block.feed_forward
        copy(layer.input_layernorm, block.self_attention_norm.scale, transposed=False)
        copy(layer.self_attn.q_proj, attention.query.kernel)
        copy(layer.self_attn.k_proj, attention.key.kernel)
        copy(layer.self_attn.v_proj, attention.value.kernel)
        copy(layer.self_attn.o_proj, attention.output_projection.kernel)
        copy(layer.post_attention_layernorm, block.feed_forward_norm.scale, transposed=False)
        copy(layer.mlp.gate_proj, mlp.gate.kernel)
        copy(layer.mlp.up_proj, mlp.up.kernel)
        copy(layer.mlp.down_proj, mlp.down.kernel)
    copy(llama.model.norm, backbone.norm.scale, transposed=False)
    if not config["tie_embeddings"]:
        copy(llama.lm_head, model.head.kernel)
    return llama
