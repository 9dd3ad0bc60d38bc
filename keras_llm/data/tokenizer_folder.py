"""A tokenizer among the files of a Hugging Face folder."""

import json
import os
from pathlib import Path
from typing import Any

import tokenizers

from keras_llm.json_files import read_file, read_json

TOKENIZER, CONFIG, TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


def write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer, tokens: dict[str, str]) -> None:
    """Writes the files that `transformers.AutoTokenizer` reads.

    Args:
        folder: Where to.
        tokenizer: The tokenizer.
        tokens: Its special tokens by their names there: `{"bos_token": ..., "eos_token": ...}`.
    """
    unknown = getattr(tokenizer.model, "unk_token", None)
    tokens = tokens if unknown is None else {**tokens, "unk_token": unknown}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        # As here, no special id is added to a text, or made out of one that spells its token, and
        # decoding changes no spaces.
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    content = json.loads(tokenizer.to_str())
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        content["post_processor"] = None
    for name, value in ((TOKENIZER, content), (CONFIG, config), (TOKENS, tokens)):
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def read_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """A tokenizer from its file; raises `ValueError` for anything else."""
    content = read_file(path)
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"path must be a JSON file of the tokenizers library. Received: {path} ({error})"
        ) from error


def special_tokens(folder: Path) -> dict[str, str | None]:
    """The `pad_token`, `start_token` and `end_token` of a folder.

    A folder without a start token has its end token for one, as GPT-2 has. Padding that is the end
    of a text is None, because the end is learnt and padding is not.

    Raises:
        FileNotFoundError: `tokenizer_config.json` is missing.
        ValueError: the folder names no end token, or a file is damaged.
    """
    named: dict[str, Any] = {}
    for path in (folder / TOKENS, folder / CONFIG):
        if path.name == CONFIG or path.is_file():
            named |= read_json(path)
    pad, start, end = (_content(named, f"{role}_token") for role in ("pad", "bos", "eos"))
    if end is None:
        raise ValueError(
            f"{CONFIG} must name an eos_token; otherwise name the special tokens yourself: "
            f"data.load_tokenizer(folder / {TOKENIZER!r}, end_token=...). Received: {folder}"
        )
    return {
        "pad_token": None if pad == end else pad,
        "start_token": end if start is None else start,
        "end_token": end,
    }


def _content(named, role):
    """A token's text, which may stand beside how it is stripped; None where none is named."""
    token = named.get(role)
    content = token.get("content", token) if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise ValueError(f"{CONFIG} must name the {role} by a string. Received: {role}={token!r}")
    return content
