"""What tells a tokenizer from another one: values that JSON can hold."""

import hashlib
from typing import Any

# Words, white space, digits, other scripts, and what is spelled like a special token.
PROBE = "The quick brown fox,\n\n\tit's 12345 times  FASTER — naïve çığ 你好 🙂 </s><|endoftext|>"


def tokenizer_fingerprint(tokenizer) -> dict[str, Any]:
    """The sizes and ids that batches depend on, and hashes of all else.

    `content` is a hash of the tokenizer's whole definition, where it has one, and `encoding` one of
    the ids that it gives to a fixed text.

    Args:
        tokenizer: What `as_tokenizer` returned.
    """
    (ids,) = tokenizer.encode_each([PROBE])
    definition = getattr(tokenizer, "definition", None)
    return {
        "vocab_size": int(tokenizer.vocab_size),
        "pad_id": tokenizer.pad_id,
        "begin_ids": list(getattr(tokenizer, "begin_ids", ())),
        "end_id": int(tokenizer.end_id),
        "content": None if definition is None else _sha256(definition()),
        "encoding": _sha256(str([int(i) for i in ids])),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
