"""Train a decoder-only language model on real text: the main job.

Without arguments it reads Python's own manual, which every Python carries, for a few minutes on a
laptop. `--text FILE` reads your text instead; `--dataset NAME` any tensorflow-datasets set. A small
text is few batches an epoch, and wants many epochs.
"""

import argparse
import math
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras

from keras_llm import callbacks, data, losses, metrics, models, optimizers, plots, schedules


def main():
    args = arguments()
    keras.utils.set_random_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)

    # Text -> ids -> batches of (ids, labels), where a label is the id that comes next.
    corpus = data.load_text(args.text, args.sample_by) if args.text else data.load(args.dataset)
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
        f"loss ln({tokenizer.vocab_size}) = {math.log(tokenizer.vocab_size):.2f}\n"
        f"{args.epochs} epochs of {len(train):,} batches: {total_steps:,} updates"
    )

    prompt = tokenizer.encode(args.prompt or beginning(corpus))[: args.seq_len // 2]
    new_tokens = min(60, args.seq_len - len(prompt))
    sampling = {"max_new_tokens": new_tokens, "temperature": 0.8, "top_p": 0.9, "seed": 0}
    report = callbacks.TrainingReport(
        args.output / "report.html", tokenizer.decode(prompt), tokenizer, **sampling
    )
    history = model.fit(train, validation_data=valid, epochs=args.epochs, callbacks=[report])

    ids = model.generate(prompt, **sampling)
    print(f"\nA sample:\n{tokenizer.decode(ids)}\n")

    model.save(args.output / "model.keras")
    tokenizer.save(args.output / "tokenizer.json")
    curves = plots.learning_curves(history).figure
    curves.savefig(args.output / "learning_curves.png", dpi=150)
    for name in ("model.keras", "tokenizer.json", "learning_curves.png", "report.html"):
        print(f"Saved {args.output / name}")


def beginning(corpus):
    """The first words of a text that the model is not trained on."""
    row = corpus["validation"][0]
    text = row if isinstance(row, str) else row[0]
    return " ".join(text.split()[:4])


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
    parser.add_argument(
        "--sample-by",
        choices=("paragraph", "line"),
        default="paragraph",
        help="what parts the documents of --text: blank lines, or every line's end",
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--prompt", help="what samples go on from (default: held-out words)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/causal_lm"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
