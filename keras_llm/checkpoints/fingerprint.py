"""What a run was made of, in plain data, so that a change of it is noticed and named."""

import hashlib
import importlib.metadata
import re
from typing import Any

import keras
import numpy as np

from keras_llm.backend.host import to_float, to_numpy
from keras_llm.backend.keras_private import (
    inner_optimizer,
    learning_rate_schedule,
    optimizer_settings,
)
from keras_llm.distribution import world

# Rows of an array that are looked at.
ROWS = 64


def fingerprint(model, data, batches: int | None) -> dict[str, dict[str, Any]]:
    """What a run is made of.

    Args:
        model: The model, compiled.
        data: What `fit` reads, `(x, y, sample_weight)`.
        batches: Batches of an epoch, where the data tells.

    Returns:
        Dictionaries of texts and numbers. A change of `"model"` or `"data"` makes another run; one
        of `"settings"` or `"software"` may be meant.
    """
    optimizer, step = model.optimizer, model.step
    inner = inner_optimizer(optimizer)
    return {
        "model": {
            "class": type(model).__name__,
            "optimizer": type(optimizer).__name__,
            "inner optimizer": type(inner).__name__,
            "backend": keras.backend.backend(),
            **{
                f"variable {i}, {unnumbered(v.path)}": f"{list(v.shape)} of {v.dtype}"
                for i, v in enumerate(model.variables)
            },
        },
        "data": {
            "batches of an epoch": batches,
            "batches of an update": 1 if step is None else step.accumulation,
            **{f"data {key}": plain(value) for key, value in data_facts(data).items()},
        },
        "settings": {
            **{
                f"optimizer {k}": plain(v)
                for k, v in optimizer_settings(inner).items()
                if k not in ("learning_rate", "name", "gradient_accumulation_steps")
            },
            "optimizer learning_rate": learning_rate(inner),
            "loss": type(model.loss).__name__,
            **{f"loss {k}": plain(v) for k, v in loss_settings(model.loss).items()},
            "micro_batch_size": None if step is None else step.micro_batch_size,
            "jit_compile": plain(model.jit_compile),
            "processes": world().size,
        },
        "software": {name: version(name) for name in ("keras_llm", "keras", "torch")}
        | {name: version(name) for name in (keras.backend.backend(),)},
    }


def check_unchanged(before: dict, now: dict, where) -> str:
    """What to warn of when a run continues; empty where nothing has changed.

    Args:
        before, now: Fingerprints.
        where: The checkpoint, for the messages.

    Raises:
        ValueError: the model or the data is another one.
    """
    others = changes(before, now, ("model", "data"))
    if others:
        more = f"; and {len(others) - 5} more" if len(others) > 5 else ""
        raise ValueError(
            "A run continues with the model, the optimizer and the data that it had: restore them, "
            f"or give another directory. Received, for {where}: {'; '.join(others[:5])}{more}"
        )
    others = changes(before, now, ("settings", "software"))
    if not others:
        return ""
    return (
        f"{where} was written with other settings or versions: the run goes on, but not as it "
        "would have gone on to the last bit. A learning rate that is a number stays the "
        f"checkpoint's. {'; '.join(others)}"
    )


def changes(before: dict, now: dict, parts: tuple[str, ...]) -> list[str]:
    """What is different in some parts of two fingerprints, one text each.

    >>> changes({"data": {"rows": 3}}, {"data": {"rows": 4}}, ("data",))
    ['rows: 3 before, 4 now']
    """
    return [
        f"{key}: {before[part].get(key, 'none')} before, {now[part].get(key, 'none')} now"
        for part in parts
        for key in dict.fromkeys([*before[part], *now[part]])
        if before[part].get(key) != now[part].get(key)
    ]


def data_facts(data) -> dict[str, Any]:
    """What identifies data: what it says itself, or the shapes of arrays and some of their rows."""
    x, *_ = data
    if hasattr(x, "fingerprint"):
        return x.fingerprint() | {"seed": x.state_dict().get("seed")}
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    if not all(hasattr(leaf, "dtype") and len(getattr(leaf, "shape", ())) for leaf in leaves):
        return {"class": type(x).__name__}
    return {
        f"input {i}": f"{list(leaf.shape)} of {keras.backend.standardize_dtype(leaf.dtype)}, "
        f"rows {digest(leaf)}"
        for i, leaf in enumerate(leaves)
    }


def digest(array) -> str:
    """A hash of some rows, spread over the array."""
    count = array.shape[0]
    rows = np.unique(np.linspace(0, max(count - 1, 0), ROWS).astype(int))[:count]
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(np.ascontiguousarray(to_numpy(array[int(row)])).tobytes())
    return hashed.hexdigest()[:12]


def learning_rate(optimizer):
    """The schedule's settings, or the number."""
    schedule = learning_rate_schedule(optimizer)
    if schedule is None:
        return plain(to_float(optimizer.learning_rate))
    return f"{type(schedule).__name__} {plain(schedule.get_config())}"


def loss_settings(loss) -> dict[str, Any]:
    """The arguments of a loss, where it tells."""
    try:
        return loss.get_config()
    except (AttributeError, NotImplementedError):
        return {}


def plain(value) -> str | int | float | None:
    """A setting as a number or a text, without addresses in memory."""
    if value is None or type(value) in (int, float, str, bool):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def unnumbered(path: str) -> str:
    """A path without the number that Keras gives the layers of a process.

    >>> unnumbered("transformer_3/block_1/kernel")
    'transformer/block/kernel'
    """
    return re.sub(r"_\d+(?=/|$)", "", path)


def version(name: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
