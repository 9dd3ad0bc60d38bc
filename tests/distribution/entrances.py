"""A program for torchrun: what else than `fit` a program calls, and which process writes for it.

It prints a line of JSON for each process.
"""

import json
import os
import sys
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (first: it joins the other processes)
import keras
import numpy as np

from keras_llm import data, losses, models
from keras_llm.data.cmudict import Cmudict
from keras_llm.distribution import world

folder, moved, prepared = Path(sys.argv[1]), [], []
replace = os.replace


def noted(old, new):
    """`os.replace`, by which files come to their place."""
    moved.append(Path(new).name)
    replace(old, new)


def rows(builder):
    """A few lines, in place of a dictionary."""
    prepared.append(True)
    for i in range(200):
        yield f"{i}", f"{i}", (f"word {i}", f"line {i} of {i % 7} and {i % 11}")


Cmudict.rows = rows
corpus = data.load("cmudict", data_dir=folder / "data")
texts = corpus["train"]["phonemes"]
units = {"subword": 300, "word": 60, "character": 40}
tokenizers = {unit: data.train_tokenizer(texts, size, unit=unit) for unit, size in units.items()}
tokenizer = tokenizers["subword"]
batches = data.causal_lm(texts, tokenizer, seq_len=16, batch_size=4)

keras.utils.set_random_seed(0)
model = models.CausalTransformer(tokenizer.vocab_size, 8, 1, 2, max_length=16)
model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy(ignore_index=0))
x, _ = next(iter(batches))
data.show(next(iter(batches)), tokenizer, rows=1)
logits = model.predict(x, verbose=2)

os.replace = noted
model.save_pretrained(folder=folder / "model", tokenizer=tokenizer)
tokenizer.save_pretrained(folder / "tokenizer")
os.replace = replace
(folder / "mine" / str(world().rank)).mkdir(parents=True)
os.chdir(folder / "mine" / str(world().rank))
# A path of each process, of which the first alone writes its own.
tokenizer.save("tokenizer.json")
if world().is_first:
    # The others are not waited for, and do not wait.
    tokenizer.save(path=folder / "again.json")
found = {
    "rows": len(corpus["train"]),
    "definitions": [each.definition() for each in tokenizers.values()],
    "logits": float(np.abs(logits).sum()),
    "moved": sorted(set(moved)),
    "prepared": len(prepared),
    "saved": Path("tokenizer.json").exists(),
    "read": sorted(path.name for path in (folder / "model").iterdir()),
}
print(f"{json.dumps(found)}\n", end="", flush=True)
