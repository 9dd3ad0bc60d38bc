"""A tokenizer of your own, from texts."""

import itertools
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from keras_llm.arguments import check_one_of, check_positive_int
from keras_llm.data.corpus import iterate_rows
from keras_llm.data.tokenizer import SPECIAL_TOKENS, UNKNOWN, Tokenizer
from keras_llm.names_elsewhere import names_elsewhere

# The library of tokenizers reserves memory for so many, and ends the process where there is none.
LARGEST = 10_000_000
UNITS = ("subword", "word", "character")


@names_elsewhere(
    {
        "max_tokens": "vocab_size=...",
        "num_words": "vocab_size=...",
        "vocabulary_size": "vocab_size=...",
        "corpus": "the texts as the first argument",
        "files": 'the texts as the first argument, such as data.load_text("my.txt")["train"]',
        "split": 'unit="word" or unit="character"',
        "char_level": 'unit="character"',
        "special_tokens": "nothing: padding, start and end are added",
        "min_frequency": "vocab_size=..., which keeps the most frequent",
    }
)
def train_tokenizer(texts: Iterable, vocab_size: int = 4096, *, unit: str = "subword") -> Tokenizer:
    """Trains a tokenizer on texts. The same texts always give the same tokenizer.

    - `unit="subword"`: byte-level byte-pair encoding (Sennrich et al., 2016; bytes as in GPT-2). It
      starts from the 256 bytes and repeatedly joins the most frequent pair. Any text can be
      encoded, and decodes to exactly the same text.
    - `unit="word"`: whatever stands between spaces, such as a phoneme.
    - `unit="character"`: every character.

    Words and characters that are not among the `vocab_size` most frequent are encoded as unknown.

    Args:
        texts: A split, or an iterable of strings or of tuples of strings, all of which are read;
            `split["field"]` picks one field.
        vocab_size: The largest number of ids, special ones included.
        unit: `"subword"`, `"word"` or `"character"`.

    Returns:
        A `Tokenizer` whose `pad_id` is 0, `start_id` 1 and `end_id` 2. Its `vocab_size` is smaller
        than the argument if the texts do not contain enough different units.

    Raises:
        TypeError: `texts` is not text.
        ValueError: `unit` is none of the three, there is no text, or `vocab_size` is no integer,
            too small for the special ids and, for subwords, all bytes, or above ten million.

    Example:

    >>> from keras_llm import data
    >>> tokenizer = data.train_tokenizer(["HH AH L OW", "L OW"], unit="word")
    >>> tokenizer.vocab_size, tokenizer.encode("L OW")
    (8, [4, 5])
    """
    check_positive_int(vocab_size, "vocab_size")
    check_one_of(unit, "unit", UNITS)
    smallest = 3 + 256 if unit == "subword" else 4 + 1
    if not smallest <= vocab_size <= LARGEST:
        raise ValueError(
            f"vocab_size must be at least {smallest} for unit={unit!r}, and at most {LARGEST:,}. "
            f"Received: vocab_size={vocab_size}"
        )
    fields = itertools.chain.from_iterable(iterate_rows(texts, "texts"))
    first = next(filter(None, fields), None)
    if first is None:
        raise ValueError("texts must hold at least one string that is not empty. Received: none")
    if unit == "subword":
        tokenizer, trainer = _byte_pairs(vocab_size)
    else:
        tokenizer, trainer = _whole_units(vocab_size, unit)
    tokenizer.train_from_iterator(itertools.chain([first], fields), trainer)
    return Tokenizer(tokenizer)


def _byte_pairs(vocab_size):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS[:3]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


def _whole_units(vocab_size, unit):
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    if unit == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    return tokenizer, trainer
