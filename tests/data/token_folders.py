"""What tests of token shards share: a text, its directory, and the bytes in a directory."""

from keras_llm import data

# Small, so that the text below makes several shards.
SHARD_BYTES = 100


def write_text(path, documents=60, first=0):
    """A file of paragraphs of known words, some of several lines."""
    paragraphs = [
        f"{i % 100} {(7 * i) % 100}\n{(3 * i) % 100}" if i % 3 else f"{i % 100}"
        for i in range(first, first + documents)
    ]
    path.write_text("\n\n".join(paragraphs))
    return paragraphs


def encode(source, tokenizer, directory, **options):
    return data.tokens(
        source, tokenizer, directory, **{"shard_bytes": SHARD_BYTES, "verbose": 0, **options}
    )


def files_of(directory):
    """`{name: bytes}` of all files but the lock."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}
