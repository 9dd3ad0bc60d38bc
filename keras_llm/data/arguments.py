"""What the functions of this folder share: checks of arguments, and their names elsewhere."""

# A dictionary for `names_elsewhere`: what other libraries call the arguments of batches.
LOADER_NAMES = {
    "drop_last": "nothing: the last batch may be smaller, and every number is per token",
    "generator": "seed=...",
    "sampler": "shuffle=True for another order every epoch, which follows from seed",
    "collate_fn": "nothing: batches are padded already",
    "pin_memory": "nothing: the tokens of a batch are few",
    "per_device_train_batch_size": "batch_size=...",
    "per_device_eval_batch_size": "batch_size=...",
    "dataset": "the texts as the first argument",
    "train_dataset": "the texts as the first argument",
}


def check_tokenizer(tokenizer, name: str = "tokenizer") -> None:
    """Raises `TypeError`, with the name, unless `tokenizer` is one of ours."""
    if not hasattr(tokenizer, "encode_each"):
        raise TypeError(
            f"{name} must come from data.train_tokenizer, or from data.load_tokenizer, which "
            f"also reads Hugging Face's tokenizer.json. Received: a {type(tokenizer).__name__}"
        )
