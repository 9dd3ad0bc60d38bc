"""Small random models of transformers, one of each kind of architecture, and batches for them."""

import copy

import torch
import transformers

VOCAB = 89
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **IDS,
}
GROUPED = {**LLAMA, "num_key_value_heads": 2}
HEADS_OF_8 = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    **IDS,
}
T5 = {
    **{"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    **{"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
}
MAMBA = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8},
    **{"head_dim": 8, "expand": 2, "state_size": 16, "n_groups": 2, "chunk_size": 8, **IDS},
}
MIXED = {
    **{"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    **{"mamba_d_state": 16, "mamba_chunk_size": 8, "lm_head_multiplier": 0.5},
}
# Architecture: the configuration's class and its sizes.
DECODERS = {
    "gpt2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt2 untied": (
        "GPT2Config",
        {
            **{"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4},
            **{"tie_word_embeddings": False},
        },
    ),
    "llama": ("LlamaConfig", GROUPED),
    "llama tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", HEADS_OF_8),
    "mistral": ("MistralConfig", GROUPED),
    "phi": ("PhiConfig", GROUPED),
    "phi3": ("Phi3Config", GROUPED),
    "gemma": ("GemmaConfig", HEADS_OF_8),
    "gemma2": ("Gemma2Config", {**HEADS_OF_8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**HEADS_OF_8, "query_pre_attn_scalar": 8}),
    "gpt_neox": ("GPTNeoXConfig", LLAMA),
    "opt": (
        "OPTConfig",
        {"vocab_size": VOCAB, **FALCON, "ffn_dim": 48, "word_embed_proj_dim": 16},
    ),
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {"vocab_size": VOCAB, **FALCON}),
    "granite": ("GraniteConfig", {**GROUPED, "logits_scaling": 8.0}),
    "cohere": ("CohereConfig", {**GROUPED, "logit_scale": 0.0625}),
    "olmo2": ("Olmo2Config", GROUPED),
    "stablelm": ("StableLmConfig", GROUPED),
    "starcoder2": ("Starcoder2Config", GROUPED),
    "glm4": ("Glm4Config", HEADS_OF_8),
    "nanochat": ("NanoChatConfig", GROUPED),
    "mamba2": ("Mamba2Config", MAMBA),
    "falcon_h1": ("FalconH1Config", {**GROUPED, **MIXED}),
    "mixtral": ("MixtralConfig", {**GROUPED, **EXPERTS, "num_local_experts": 4}),
    "mixtral with its routers' loss": (
        "MixtralConfig",
        {**GROUPED, **EXPERTS, "num_local_experts": 4, "output_router_logits": True}
        | {"router_aux_loss_coef": 0.1},
    ),
    "bart decoder": ("BartConfig", {**BART, "is_decoder": True, "is_encoder_decoder": False}),
}
ENCODER_DECODERS = {
    "t5": ("T5Config", T5),
    "t5 gated": ("T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5Config", T5),
    "bart": ("BartConfig", BART),
    "mbart": ("MBartConfig", BART),
    "marian": ("MarianConfig", {**BART, "decoder_vocab_size": VOCAB}),
    "pegasus": ("PegasusConfig", BART),
    "blenderbot": ("BlenderbotConfig", BART),
    "m2m_100": ("M2M100Config", BART),
}
EVERY = [*DECODERS, *ENCODER_DECODERS]


def make(name, dtype=torch.float32):
    """A model without dropout, in which nothing is 0 or 1 that training would change."""
    torch.manual_seed(0)
    config_name, sizes = (DECODERS | ENCODER_DECODERS)[name]
    config = getattr(transformers, config_name)(**sizes)
    if name == "bart decoder":
        model = transformers.BartForCausalLM(config)
    elif name in ENCODER_DECODERS:
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.5)
    return without_dropout(model.to(dtype)).eval()


def without_dropout(model):
    """The model, with every probability of dropping something at 0."""
    for part in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return model


def batch(name, rows=4, length=12):
    """Inputs and labels as Hugging Face's users have them.

    The last but one row is short, a part of the first row does not count, nothing of the last one
    does.
    """
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-2, length - 4 :] = 0
    ids = ids * mask
    if name in ENCODER_DECODERS:
        labels = torch.randint(3, VOCAB, (rows, length - 3), generator=generator)
        labels[0, -3:] = -100
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[0, :4] = -100
    if name == "bart decoder":  # of which transformers shifts no labels
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    labels[-1] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def twin(model):
    """A copy in training mode, to be trained by hand."""
    return copy.deepcopy(model).train()
