"""A program for one process or several: what `explain` and `trace` print, and leave as it was.

Each process writes a file FOLDER/RANK.json.
"""

import json
import sys
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (first: it joins the other processes)
import keras
import numpy as np
import torch

from keras_llm import distribution
from tests.explanation.small_models import X, Y, compiled, token_metrics

keras.utils.set_random_seed(0)
model = compiled(optimizer=keras.optimizers.SGD(0.1), metrics=token_metrics())


def state():
    """The sum of all weights, and that of the random state."""
    weights = sum(float(np.abs(weight).sum()) for weight in model.get_weights())
    return weights, int(torch.get_rng_state().double().sum())


def section(explanation, title):
    """Value, text and note of each fact, but for times."""
    facts = [fact for fact in explanation[title].facts if fact.name != "took"]
    return {fact.name: (fact.value, fact.text, fact.note) for fact in facts}


explained = model.explain()
before = state()
traced = model.trace((X, Y), show=distribution.world().size > 1)
after = state()
if distribution.world().is_first:
    # What one process does alone must not leave the others waiting.
    model.trace((X, Y), show=False)
history = model.fit(X, Y, batch_size=4, verbose=0).history
found = {
    "parameters": model.count_params(),
    "processes": section(explained, "How it runs"),
    "loss": section(traced, "3 Loss"),
    "batch": section(traced, "1 Batch"),
    "before": before,
    "after": after,
    "history": history["loss"],
    "effective": section(model.explain(show=False), "One update")["effective batch"],
}
path = Path(sys.argv[1], f"{distribution.world().rank}.json")
path.write_text(json.dumps(found, default=str))
