"""Tokenizers of Hugging Face transformers, with the attributes that the library reads."""

import itertools
import json
from collections.abc import Iterable, Iterator

from keras_llm.data.tokenizer import TEXTS_PER_CALL, Tokenizer
from keras_llm.data.unicode_text import valid_texts


class HuggingFaceTokenizer:
    """A tokenizer of transformers, fast or slow, with what batches ask of a `Tokenizer`.

    Its `pad_id` is None: labels of padding are -100, as everywhere in transformers, and the id
    there is `end_id`, which every model knows. Padding is never found by its id, so the tokenizer's
    `pad_token` may be its `eos_token`.

    Args:
        tokenizer: A `transformers.PreTrainedTokenizerBase`.
        is_source: Whether an encoder reads its ids. They then have the special ids that
            `tokenizer(text)` adds, and `pad_id` is that of the tokenizer: encoders mask padding.

    Attributes:
        begin_ids: `(bos,)` if `tokenizer(text)` begins with it, else `()`.
        start_id: What a decoder reads first: the id of `bos_token`, else `cls_token`, else, as T5
            has it, `pad_token`, else `eos_token`.
        end_id: The id of `eos_token`, else `sep_token`.

    Raises:
        ValueError: the tokenizer has no token that ends a text.
    """

    def __init__(self, tokenizer, is_source: bool = False):
        self.tokenizer = tokenizer
        self.is_source = is_source
        self.vocab_size = max(*tokenizer.get_vocab().values(), len(tokenizer) - 1) + 1
        self.pad_id = tokenizer.pad_token_id if is_source else None
        self.start_id = self._first_id("bos", "cls", "pad", "eos")
        self.end_id = self._first_id("eos", "sep")
        if self.end_id is None:
            raise ValueError(
                "tokenizer must have a token that ends a text: set tokenizer.eos_token. "
                f"Received: a {type(tokenizer).__name__} with eos_token=None, sep_token=None"
            )
        begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        self.begin_ids = (tokenizer.bos_token_id,) if begins else ()

    def _first_id(self, *roles: str) -> int | None:
        ids = (getattr(self.tokenizer, f"{role}_token_id") for role in roles)
        return next((i for i in ids if i is not None), None)

    def encode_each(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of every text; a special token that is spelled in a text is that token."""
        for encoded in self._encode(texts):
            yield from encoded["input_ids"]

    def encode_with_ends(
        self, texts: Iterable[str]
    ) -> Iterator[tuple[list[int], list[int] | None]]:
        """The ids of every text, and where in it each token ends, which slow ones do not know."""
        is_fast = self.tokenizer.is_fast
        for encoded in self._encode(texts, return_offsets_mapping=is_fast):
            if not is_fast:
                yield from ((ids, None) for ids in encoded["input_ids"])
                continue
            for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                yield ids, [end for _, end in spans]

    def _encode(self, texts, **kwargs):
        texts = valid_texts(texts, "texts")
        while some := list(itertools.islice(texts, TEXTS_PER_CALL)):
            # Not verbose: texts that are longer than the model are cut where batches are made.
            yield self.tokenizer(
                some,
                add_special_tokens=self.is_source,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
                **kwargs,
            )

    def definition(self) -> str:
        """All that encoding depends on, as JSON."""
        if self.tokenizer.is_fast:
            content = json.loads(self.tokenizer.backend_tokenizer.to_str())
            # Calls of the tokenizer leave these behind, and set them anew.
            content |= {"truncation": None, "padding": None}
        else:
            content = [type(self.tokenizer).__name__, self.tokenizer.get_vocab()]
        splits = getattr(self.tokenizer, "split_special_tokens", False)
        return json.dumps([content, splits], sort_keys=True)

    def spelled(self, ids: list[int]) -> str:
        """The text of one row of ids, special ones included."""
        return self.tokenizer.decode(ids)


def as_tokenizer(
    tokenizer, name: str = "tokenizer", is_source: bool = False
) -> Tokenizer | HuggingFaceTokenizer:
    """One of ours as it is, one of transformers wrapped.

    Raises:
        TypeError: it is neither; the message calls it by its `name` as an argument.
        ValueError: a tokenizer of transformers has no token that ends a text.
    """
    if hasattr(tokenizer, "encode_each") and not isinstance(tokenizer, type):
        return tokenizer
    if callable(tokenizer) and hasattr(tokenizer, "convert_ids_to_tokens"):
        return HuggingFaceTokenizer(tokenizer, is_source)
    raise TypeError(
        f"{name} must come from data.train_tokenizer, or from data.load_tokenizer, which "
        "also reads Hugging Face's tokenizer.json, or be a tokenizer of transformers. "
        f"Received: a {type(tokenizer).__name__}"
    )
