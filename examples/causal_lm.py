"""Train a decoder-only language model on real text: the main job.

Without arguments it reads Python's own manual, which every Python carries, for a few minutes on a
laptop. `--text FILE` reads your text instead; `--dataset NAME` any tensorflow-datasets set.
"""

import argparse
import math
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras
import matplotlib

from keras_llm import data, losses, metrics, models, optimizers, schedules

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
    args = arguments()
    keras.utils.set_random_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)

    # Text -> ids -> batches of (ids, labels), where a label is the id that comes next.
    corpus = data.load_text(args.text) if args.text else data.load(args.dataset)
    tokenizer = data.train_tokenizer(corpus["train"], vocab_size=args.vocab_size)
    shape = {"seq_len": args.seq_len, "batch_size": args.batch_size}
    train = data.causal_lm(corpus["train"], tokenizer, **shape, shuffle=True, seed=args.seed)
    valid = data.causal_lm(corpus["validation"], tokenizer, **shape)

    model = models.CausalTransformer(
        vocab_size=tokenizer.vocab_size,
        d_model=args.d_model,
        num_layers=args.num_layers,
        num_heads=args.num_heads,
        max_length=args.seq_len,
    )

    # What compile decides: how to update, what to minimise, what to watch.
    total_steps = args.epochs * len(train)
    warmup_steps = min(100, total_steps // 10)
    model.compile(
        optimizer=optimizers.AdamW(
            schedules.WarmupCosineDecay(args.learning_rate, warmup_steps, total_steps),
            weight_decay=0.1,
            global_clipnorm=1.0,
        ),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id),
        metrics=[
            metrics.Perplexity(ignore_index=tokenizer.pad_id),
            metrics.MaskedTokenAccuracy(ignore_index=tokenizer.pad_id, name="accuracy"),
        ],
    )
    print(
        f"{model.count_params():,} parameters; a model that knows nothing has "
        f"loss ln({tokenizer.vocab_size}) = {math.log(tokenizer.vocab_size):.2f}"
    )

    history = model.fit(train, validation_data=valid, epochs=args.epochs).history

    prompt = tokenizer.encode(args.prompt)[: args.seq_len // 2]
    new_tokens = min(60, args.seq_len - len(prompt))
    ids = model.generate(prompt, max_new_tokens=new_tokens, temperature=0.8, top_p=0.9, seed=0)
    print(f"\nA sample:\n{tokenizer.decode(ids)}\n")

    model.save(args.output / "model.keras")
    tokenizer.save(args.output / "tokenizer.json")
    plot(history, args.output / "learning_curves.png")
    for name in ("model.keras", "tokenizer.json", "learning_curves.png"):
        print(f"Saved {args.output / name}")


def plot(history, path):
    """Loss and perplexity by epoch, training and validation."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    for axis, name in zip(axes, ("loss", "perplexity"), strict=True):
        axis.plot(epochs, history[name], marker="o", label="training")
        axis.plot(epochs, history[f"val_{name}"], marker="o", label="validation")
        axis.set(xlabel="epoch", title=f"{name} per token", xticks=epochs)
        axis.legend()
    figure.savefig(path, dpi=150)


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", metavar="FILE", help="train on this text file")
    source.add_argument(
        "--dataset",
        metavar="NAME",
        default="python_manual",
        help="train on this tensorflow-datasets set (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--prompt", default="The with statement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/causal_lm"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
