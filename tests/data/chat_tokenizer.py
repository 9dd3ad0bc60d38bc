"""Chats, and a small byte-level tokenizer of transformers, whose chat templates tests choose."""

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from keras_llm import data

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
SKY = [
    {"role": "user", "content": "What color is the sky?"},
    {"role": "assistant", "content": "The sky is blue."},
]
SUM = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "2 + 2 = 4"}]
CHAT = [SYSTEM, *SKY, *SUM]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
TEXTS = [
    "You are a helpful assistant.",
    "What color is the sky? The sky is blue.",
    "2 + 2 = 4, she said.\n\n",
    "user assistant system\n",
] * 20
BODY = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}TURN{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# By the prefix rule, the line end behind an answer is a part of it; this mark leaves it out.
PLAIN = BODY.replace("TURN", "{{ m['content'] + '<|im_end|>\n' }}")
MARKED = BODY.replace(
    "TURN",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
)


def chat_tokenizer(template=PLAIN, pad_token="<pad>", adds_bos=True):
    """Trained anew, since tests change it: it takes a few milliseconds."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if adds_bos:  # as Llama's
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token=pad_token
    )
    tokenizer.chat_template = template
    return tokenizer


def rows_of(rows, tokenizer, max_length=1000, **kwargs):
    """The tokens and the labels of every row, without padding."""
    found = []
    for ids, labels in data.instruction(rows, tokenizer, max_length, **kwargs):
        assert ids.shape == labels.shape
        for row in zip(ids.tolist(), labels.tolist(), strict=True):
            last = max(i for i, label in enumerate(row[1]) if label != -100)
            found.append(tuple(each[: last + 1] for each in row))
    return found
