"""Teach a small model with a large one: a teacher's distribution says more than a label.

The teacher reads all of the text, the student a tenth of it: once with the labels alone, once with
the teacher's word on them too.
"""

import argparse

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras

from keras_llm import data, losses, metrics, models, optimizers, schedules


def main():
    args = arguments()
    corpus = data.load_text(args.text) if args.text else data.load("python_manual")
    tokenizer = data.train_tokenizer(corpus["train"], vocab_size=args.vocab_size)
    shape = {"seq_len": args.seq_len, "batch_size": 16}
    every, valid = (
        data.causal_lm(corpus[part], tokenizer, **shape, shuffle=part == "train", seed=0)
        for part in ("train", "validation")
    )
    few = corpus["train"][: max(1, len(corpus["train"]) // 10)]
    tenth = data.causal_lm(few, tokenizer, **shape, shuffle=True, seed=0)

    def make(d_model, layers):
        keras.utils.set_random_seed(0)
        return models.CausalTransformer(
            tokenizer.vocab_size, d_model, layers, num_heads=4, max_length=args.seq_len
        )

    def train(model, batches, epochs):
        """Fits the model, and returns its perplexity on text that nobody has read."""
        steps = epochs * len(batches)
        model.compile(
            optimizers.AdamW(
                schedules.WarmupCosineDecay(3e-3, steps // 10, steps), global_clipnorm=1.0
            ),
            losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id),
            metrics=[metrics.Perplexity()],
        )
        model.fit(batches, epochs=epochs, verbose=args.verbose)
        return model.evaluate(valid, verbose=0, return_dict=True)["perplexity"]

    width = args.d_model
    teacher = make(width, args.num_layers)
    print(f"teacher, all of the text: perplexity {train(teacher, every, args.epochs):.1f}")
    alone = train(make(width // 2, 1), tenth, 2 * args.epochs)
    print(f"student, labels of a tenth of it: perplexity {alone:.1f}")
    student = make(width // 2, 1)
    student.build((None, args.seq_len))
    distilled = models.Distillation(teacher, student, alpha=0.7, temperature=2.0)
    taught = train(distilled, tenth, 2 * args.epochs)
    print(f"student, the same with the teacher: perplexity {taught:.1f}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", help="a file; without it, Python's own manual")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--verbose", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
