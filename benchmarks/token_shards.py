"""Text encoded into files and read back, beside the tokenizer's own speed on all cores.

    python benchmarks/token_shards.py --megabytes 200

The text is Python's own documentation, repeated with variations: in every copy some words are
replaced by numbers, so that the tokenizer's cache of words helps as little as it does in real text.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

from harness import machine, resident_bytes

VOCAB_SIZE = 8192
# The tokenizer alone encodes the beginning of the text, before `data.tokens` and again after it.
ALONE_BYTES = 200e6
SEQ_LEN, BATCH_SIZE, BATCHES = 1024, 16, 2000


def write_text(path, megabytes):
    """Paragraphs up to so many megabytes."""
    from keras_llm.data.python_manual import manual_topics, module_docstrings

    documents = [*manual_topics().values(), *module_docstrings().values()]
    paragraphs = [each for document in documents for each in document.split("\n\n")]
    generator, size = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for paragraph in paragraphs:
                words = paragraph.split(" ")
                for _ in range(len(words) // 10):
                    words[generator.randrange(len(words))] = f"{generator.randrange(10**5):x}"
                size += file.write(" ".join(words) + "\n\n")


def side_tokenizer(folder):
    """The library alone: lists of documents to encodings, which are dropped."""
    import tokenizers

    from keras_llm.data.text_files import SEPARATORS, file_documents
    from keras_llm.data.token_chunks import text_chunks

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = file_documents(folder / "text.txt", SEPARATORS["paragraph"])
    seconds = count = size = 0
    for chunk in text_chunks(documents, 2**23):
        start = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(chunk.rows, add_special_tokens=False)
        seconds += time.perf_counter() - start
        count += sum(map(len, encodings))
        size += len(chunk.content)
        if size > ALONE_BYTES:
            break
    return {"seconds": seconds, "tokens": count, "text": size}


def side_encode(folder):
    """`data.tokens`, the first time."""
    from keras_llm import data

    tokenizer = data.load_tokenizer(folder / "tokenizer.json")
    before, start = resident_bytes(), time.perf_counter()
    tokens = data.tokens(folder / "text.txt", tokenizer, folder / "tokens", verbose=0)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "tokens": tokens.num_tokens,
        "documents": len(tokens),
        "imports": before,
        "peak": resident_bytes("VmHWM"),
    }


def side_read(folder):
    """A second start: from the call, without the imports, to the first batch, and then many."""
    from keras_llm import data

    tokenizer = data.load_tokenizer(folder / "tokenizer.json")
    results = {}
    for pack in (True, False):
        start = time.perf_counter()
        tokens = data.tokens(folder / "text.txt", tokenizer, folder / "tokens", verbose=0)
        loader = data.causal_lm(
            tokens, seq_len=SEQ_LEN, batch_size=BATCH_SIZE, shuffle=True, pack=pack
        )
        batches = iter(loader)
        next(batches)
        first = time.perf_counter() - start
        start = time.perf_counter()
        count = sum(1 for _ in itertools.islice(batches, BATCHES))
        seconds = time.perf_counter() - start
        results["packed" if pack else "documents"] = {
            "first": first,
            "batches_per_second": count / seconds,
            "tokens_per_second": count * BATCH_SIZE * SEQ_LEN / seconds,
        }
    return results


SIDES = {"tokenizer": side_tokenizer, "encode": side_encode, "read": side_read}


def run(side, folder):
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.folder)))
        return
    from keras_llm import data

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.txt", arguments.megabytes)
        with open(folder / "text.txt", encoding="utf-8") as file:
            sample = file.read(3_000_000).split("\n\n")
        data.train_tokenizer(sample, vocab_size=VOCAB_SIZE).save(folder / "tokenizer.json")
        before, encoded, after, read = (
            run(side, folder) for side in ("tokenizer", "encode", "tokenizer", "read")
        )
        size = (folder / "text.txt").stat().st_size / 1e6
    speeds = [alone["text"] / 1e6 / alone["seconds"] for alone in (before, after)]
    print(machine())
    print(
        f"{size:.0f} MB of text, {encoded['documents']:,} documents, {encoded['tokens']:,} tokens"
    )
    print(f"tokenizers library alone   {speeds[0]:7.2f} MB/s before, {speeds[1]:.2f} after")
    speed = size / encoded["seconds"]
    print(f"data.tokens                {speed:7.2f} MB/s   {2 * speed / sum(speeds):.2f} of it")
    print(
        f"peak memory                {encoded['peak'] / 1e6:7.0f} MB, of which "
        f"{encoded['imports'] / 1e6:.0f} MB before the call"
    )
    for name, found in read.items():
        print(
            f"read, {name:9}            first batch after {found['first']:.2f} s, then "
            f"{found['batches_per_second']:.0f} batches/s, "
            f"{found['tokens_per_second'] / 1e6:.1f} million tokens/s"
        )


if __name__ == "__main__":
    main()
