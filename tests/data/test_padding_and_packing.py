"""Batches of `instruction` in models of transformers: a row has the numbers that it has alone."""

import pytest
import torch
import transformers

from keras_llm import data
from tests.data.chat_tokenizer import CHAT, MARKED, SKY, SYSTEM, chat_tokenizer

pytestmark = pytest.mark.torch_only

TOKENIZER = chat_tokenizer(MARKED)
ROWS = [{"messages": m} for m in (CHAT, SKY, CHAT[1:], [SYSTEM, *SKY])]
SIZES = dict(
    vocab_size=400,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
HEADS = dict(head_dim=8, query_pre_attn_scalar=8)
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "gpt2": transformers.GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2),
    # Its first layers see four tokens back.
    "gemma3": transformers.Gemma3TextConfig(**SIZES, **HEADS, sliding_window=4),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8),
}


def losses(model, x, labels):
    """The loss of every label that counts, in the order of the rows."""
    inputs = x if isinstance(x, dict) else {"input_ids": x}
    logits = model(**inputs, use_cache=False).logits
    each = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    return [row[label != -100] for row, label in zip(each, labels, strict=True)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_padded_and_packed_rows_are_exact(name, packing):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    alone = []
    for row in ROWS:
        messages = row["messages"]
        encoded = TOKENIZER.apply_chat_template(
            messages, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ids, mask = encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).bool()
        labels = torch.where(mask, ids, -100)[:, 1:]
        alone += losses(model, ids[:, :-1], labels)
    ((x, labels),) = data.instruction(ROWS, TOKENIZER, 128, packing, pad_to_multiple_of=32)
    assert len(labels) == (2 if packing else 4)
    together = torch.cat(losses(model, x, labels))
    key = lambda rows: torch.cat(list(rows)).sort().values  # noqa: E731
    torch.testing.assert_close(key([together]), key(alone), atol=2e-6, rtol=1e-6)
