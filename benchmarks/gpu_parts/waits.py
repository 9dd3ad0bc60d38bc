"""What makes the host wait for the GPU inside an epoch of `fit`, and where."""

import collections
import os
import traceback
import warnings
from unittest import mock

import torch

VOCAB, STEPS, BATCH, LENGTH = 211, 24, 8, 16
WARM_UP = 3  # traces and compiles


def run(rows):
    """Counts between the first steps and the last, without the log points of a clock."""
    for jit in ("auto",) if rows.small else ("auto", True):
        label = f"waits in {STEPS - WARM_UP - 1} steps, jit_compile={jit}"
        with rows.side(label):
            places, metrics = waits(jit, rows.device)
            rows.add(
                label,
                ok=not places and metrics["ok"],
                waits=sum(places.values()),
                where="; ".join(f"{n} at {p}" for p, n in places.most_common(6)),
                evaluate=metrics["distance"],
            )


def waits(jit, device):
    """How often each place waited, and `evaluate` against float64."""
    model = make_model(jit)
    x, y = make_data()
    places = collections.Counter()

    def note(message, *_args, **_kwargs):
        if "called a synchronizing" in str(message):
            places[place()] += 1

    def at_step(step):
        if device == "cuda" and step in (WARM_UP, STEPS - 1):
            torch.cuda.set_sync_debug_mode("warn" if step == WARM_UP else "default")

    torch.set_warn_always(True)
    log_points = mock.patch("keras_llm.training.torch.log_throttle.INTERVAL", float("inf"))
    with warnings.catch_warnings(), log_points:
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            model.fit(loader(x, y, at_step), verbose=0, shuffle=False)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
    return places, evaluated(model, x, y)


def place():
    """The innermost line, and the innermost of keras_llm."""
    import keras_llm

    folder = os.path.dirname(keras_llm.__file__) + os.sep
    frames = [f for f in traceback.extract_stack() if f.filename != __file__]
    frames = [f for f in frames if not f.filename.endswith("warnings.py")]
    ours = [f for f in frames if f.filename.startswith(folder)]

    def text(frame):
        return f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno}"

    return " < ".join(dict.fromkeys(text(f) for f in (frames[-1:] + ours[-1:])))


def loader(x, y, at_step):
    if torch.cuda.is_available():
        x, y = x.pin_memory(), y.pin_memory()

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            for step in range(STEPS):
                at_step(step)
                rows = slice(BATCH * step, BATCH * (step + 1))
                yield x[rows], y[rows]

        def __len__(self):
            return STEPS

    return torch.utils.data.DataLoader(Batches(), batch_size=None)


def make_model(jit):
    import keras

    from keras_llm import losses, metrics, models, optimizers, schedules

    keras.utils.set_random_seed(0)
    dtype = "mixed_bfloat16" if torch.cuda.is_available() else None
    model = models.CausalTransformer(VOCAB, 64, 2, 2, LENGTH, dtype=dtype)
    schedule = schedules.WarmupCosineDecay(1e-3, warmup_steps=2, total_steps=50)
    model.compile(
        optimizer=optimizers.AdamW(schedule, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
        metrics=[metrics.Perplexity(0), metrics.MaskedTokenAccuracy(1, 0)],
        jit_compile=jit,
    )
    return model


def make_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, VOCAB, (BATCH * STEPS, LENGTH), generator=generator)
    y = (3 * x + 1) % VOCAB
    return x, y.masked_fill(torch.rand(y.shape, generator=generator) < 0.3, 0)


def evaluated(model, x, y):
    """What `evaluate` says, beside float64 numbers of the model's logits."""
    found = model.evaluate(x.numpy(), y.numpy(), batch_size=BATCH, verbose=0, return_dict=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = model.predict(x.numpy(), batch_size=BATCH, verbose=0).astype("float64")
    logits = torch.as_tensor(logits, device=device).flatten(0, 1)
    labels = y.flatten().to(device)
    counts = labels != 0
    nll = float(torch.nn.functional.cross_entropy(logits[counts], labels[counts]))
    hits = float((logits.argmax(1) == labels)[counts].double().mean())
    perplexity = next(v for k, v in found.items() if "perplexity" in k)
    accuracy = next(v for k, v in found.items() if "accuracy" in k)
    far = max(abs(found["loss"] / nll - 1), abs(torch.tensor(perplexity).log().item() / nll - 1))
    far = max(far, abs(accuracy - hits))
    return {"ok": far < 1e-2 if device == "cuda" else far < 1e-5, "distance": far}
