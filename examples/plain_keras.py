"""The same losses, metrics and optimizers on a plain `keras.Model`: an LSTM over characters.

Runs on any backend: `KERAS_BACKEND=jax python examples/plain_keras.py`.
"""

import argparse

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras

from keras_llm import data, losses, metrics, optimizers


def main():
    args = arguments()
    keras.utils.set_random_seed(0)
    corpus = data.load("python_manual")
    tokenizer = data.train_tokenizer(corpus["train"], unit="character")
    texts = corpus["train"][: args.texts]
    train = data.causal_lm(texts, tokenizer, seq_len=64, batch_size=32, shuffle=True)

    model = keras.Sequential(
        [
            keras.layers.Embedding(tokenizer.vocab_size, 64),
            keras.layers.LSTM(128, return_sequences=True),
            keras.layers.Dense(tokenizer.vocab_size),
        ]
    )
    model.compile(
        optimizer=optimizers.AdamW(3e-3),
        loss=losses.MaskedSparseCategoricalFocalCrossentropy(
            gamma=2.0, alpha=0.25, ignore_index=tokenizer.pad_id
        ),
        metrics=[metrics.Perplexity(ignore_index=tokenizer.pad_id)],
    )
    # The loader shuffles; without the argument, a plain keras.Model warns that it cannot.
    history = model.fit(train, epochs=args.epochs, shuffle=False).history
    print(
        f"Backend {keras.backend.backend()}: perplexity {history['perplexity'][-1]:.1f} "
        f"with {tokenizer.vocab_size} characters."
    )


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--texts", type=int, default=300, help="train on the first so many texts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
