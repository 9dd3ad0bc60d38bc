"""The checks that the arguments of several functions here share."""


def check_tokenizer(tokenizer, name: str = "tokenizer") -> None:
    """Raises `TypeError`, with the name, unless `tokenizer` is one of ours."""
    if not hasattr(tokenizer, "encode_each"):
        raise TypeError(
            f"`{name}` must come from data.train_tokenizer, or from data.load_tokenizer, which "
            f"also reads Hugging Face's tokenizer.json. Received: a {type(tokenizer).__name__}"
        )


def check_positive_int(value, name: str) -> None:
    """Raises `TypeError` or `ValueError`, with the name, unless `value` is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
