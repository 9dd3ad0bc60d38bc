"""A tokenizer from its file."""

import os

from keras_llm.data.tokenizer import END, PAD, START, TOKEN_NAMES, Tokenizer
from keras_llm.data.tokenizer_folder import read_tokenizer
from keras_llm.names_elsewhere import names_elsewhere


@names_elsewhere(TOKEN_NAMES)
def load_tokenizer(
    path: str | os.PathLike,
    *,
    pad_token: str | None = PAD,
    start_token: str = START,
    end_token: str = END,
) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote, or any JSON file of the `tokenizers` library.

    A token may have several roles, with one exception: the end of a text is learnt and padding is
    not, so batches refuse a `pad_token` that is the `end_token`. A tokenizer with one special
    token, as GPT-2's, takes `pad_token=None`. Its `pad_id` is then None, and labels of padding are
    -100, the default `ignore_index` of losses and metrics:

        load_tokenizer(path, pad_token=None, start_token="<|endoftext|>", end_token="<|endoftext|>")

    Args:
        path: The file, such as the `tokenizer.json` of a model from Hugging Face.
        pad_token: Its token that fills the rest of a row, such as `"[PAD]"`; None if it has none.
        start_token: Its token that a decoder reads first, such as `"[CLS]"`.
        end_token: Its token that ends a text, such as `"[SEP]"` or `"<|endoftext|>"`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a tokenizer, or has no such token.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "tokenizer.json")
    >>> from keras_llm import data
    >>> tokenizer = data.train_tokenizer(["a b"], unit="word")
    >>> tokenizer.save(path)
    >>> data.load_tokenizer(path).encode("b a") == tokenizer.encode("b a")
    True
    """
    return Tokenizer(read_tokenizer(path), pad_token, start_token, end_token)
