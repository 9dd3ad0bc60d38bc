"""Draws the pictures of README and docs/learn.md.

    python docs/make_pictures.py

Most come from a training of about a minute on Python's manual. Each is saved twice in
docs/pictures, for light pages and for dark ones.
"""

import re
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras
import matplotlib

from keras_llm import data, losses, metrics, models, optimizers, plots, schedules

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
GROUNDS = {"": "default", "-dark": "dark_background"}
EPOCHS, DOCUMENTS, LETTERS = 8, 80, 300


def main():
    """Trains a model and draws all pictures."""
    explanation = explained()
    model, tokenizer, history, text = train()
    compared = {
        "cosine": schedules.WarmupCosineDecay(1e-3, 100, 2_000),
        "linear": schedules.WarmupLinearDecay(1e-3, 100, 2_000),
        "stable, then 1 - sqrt": schedules.WarmupStableDecay(1e-3, 100, 1_500, 400, "1-sqrt"),
        "inverse square root": schedules.WarmupInverseSquareRoot(1e-3, 100),
    }
    pictures = {
        "explain": lambda: screen(explanation),
        "learning_curves": lambda: plots.learning_curves(history),
        "schedule": lambda: plots.schedule(compared),
        "focal": plots.focal,
        "token_loss": lambda: plots.token_loss(model, text, tokenizer),
    }
    PICTURES.mkdir(exist_ok=True)
    for suffix, style in GROUNDS.items():
        with plt.style.context(style):
            for name, draw in pictures.items():
                path = PICTURES / f"{name}{suffix}.png"
                draw().figure.savefig(path, dpi=120)
                print(f"Saved {path}")
            plt.close("all")


def explained():
    """The first half of what `explain` says of a model whose learning rate is too high."""
    model = models.CausalTransformer(4_096, d_model=256, num_layers=4, num_heads=4)
    model.compile(
        optimizer=optimizers.AdamW(
            schedules.WarmupCosineDecay(1e-2, warmup_steps=100, total_steps=2_000),
            weight_decay=0.1,
            global_clipnorm=1.0,
        ),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
        metrics=[metrics.Perplexity(ignore_index=0)],
    )
    return model.explain(show=False).to_text(80).split("\n\nOne update")[0]


def screen(text):
    """A text as a terminal shows it: titles bold, usual ranges grey, flags orange."""
    lines, size = text.splitlines(), 10
    # Inches that a character of DejaVu Sans Mono takes.
    width, height = 0.602 * size / 72, 1.164 * size / 72
    figure = plt.figure(figsize=(82 * width, (len(lines) + 1) * height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, 81), ylim=(len(lines) + 0.5, -0.5))
    axes.axis("off")
    font = {"family": ["DejaVu Sans Mono", "DejaVu Sans"], "size": size, "va": "center"}
    flagged = False
    for row, line in enumerate(lines):
        flagged = "▲ " in line or (flagged and line.startswith(" " * 23))
        weight = "normal" if line.startswith(" ") else "bold"
        # A range and its sources, or what is between two of them.
        for part in re.finditer(r"\[[^]]*\]\S*|(?:(?!\[).)+", line):
            alpha = 0.6 if part[0].startswith("[") else 1
            color = "#c77700" if flagged else plt.rcParams["text.color"]
            place = part.start(), row + 0.5
            axes.text(*place, part[0], color=color, alpha=alpha, weight=weight, **font)
    return axes


def train():
    """A small trained model, its tokenizer, its history, and a text from the validation split."""
    keras.utils.set_random_seed(0)
    corpus = data.load("python_manual")
    tokenizer = data.train_tokenizer(corpus["train"], vocab_size=2_048)
    shape = {"seq_len": 128, "batch_size": 8}
    train = data.causal_lm(corpus["train"][:DOCUMENTS], tokenizer, **shape, shuffle=True, seed=0)
    valid = data.causal_lm(corpus["validation"][:10], tokenizer, **shape)
    model = models.CausalTransformer(
        tokenizer.vocab_size, d_model=96, num_layers=2, num_heads=4, max_length=256
    )
    steps = EPOCHS * len(train)
    model.compile(
        optimizer=optimizers.AdamW(
            schedules.WarmupCosineDecay(3e-3, warmup_steps=steps // 20, total_steps=steps),
            weight_decay=0.1,
            global_clipnorm=1.0,
        ),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id),
        metrics=[metrics.Perplexity(ignore_index=tokenizer.pad_id)],
    )
    history = model.fit(train, validation_data=valid, epochs=EPOCHS, verbose=2)
    paragraphs = (p for text in corpus["validation"] for p in text.split("\n\n"))
    prose = next(p for p in paragraphs if len(p) > LETTERS and p[0].isupper())
    return model, tokenizer, history, prose


if __name__ == "__main__":
    main()
