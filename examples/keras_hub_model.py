"""Train a KerasHub model by compile and fit of this library, in place: GPT-2 or Llama 3.

The model is small and starts from random weights; one from
`keras_hub.models.CausalLM.from_preset(...)` is trained by the same lines. TensorFlow is not needed,
unless it is the backend: `KERAS_BACKEND=jax python examples/keras_hub_model.py`.
"""

import argparse

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras
import numpy as np

from keras_llm import data, losses, metrics, models, optimizers


def main():
    args = arguments()
    # Here, since it takes seconds.
    import keras_hub

    keras.utils.set_random_seed(0)
    corpus = data.load("python_manual")
    tokenizer = data.train_tokenizer(corpus["train"], vocab_size=args.vocab_size)
    shape = {"seq_len": args.seq_len, "batch_size": args.batch_size}
    train = data.causal_lm(corpus["train"][: args.texts], tokenizer, **shape, shuffle=True)
    valid = data.causal_lm(corpus["validation"][: args.texts // 4], tokenizer, **shape)

    sizes = {
        "vocabulary_size": tokenizer.vocab_size,
        "num_layers": args.num_layers,
        "hidden_dim": args.hidden_dim,
        "intermediate_dim": 4 * args.hidden_dim,
    }
    if args.model == "gpt2":
        backbone = keras_hub.models.GPT2Backbone(
            **sizes, num_heads=4, max_sequence_length=args.seq_len, dropout=0.0
        )
        task = keras_hub.models.GPT2CausalLM(backbone)
    else:
        backbone = keras_hub.models.Llama3Backbone(
            **sizes, num_query_heads=4, num_key_value_heads=2
        )
        task = keras_hub.models.Llama3CausalLM(backbone)

    model = models.from_keras_hub(task)
    model.compile(
        optimizer=optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id),
        metrics=[metrics.Perplexity(ignore_index=tokenizer.pad_id)],
    )
    print(f"{type(task).__name__} with {model.count_params():,} parameters")
    model.fit(train, validation_data=valid, epochs=args.epochs, verbose=2)

    # The task's own generate, which has the trained weights: nothing was copied.
    task.compile(sampler="greedy")
    prompt = tokenizer.encode("The with statement")
    ids = np.zeros((1, args.seq_len), "int32")
    ids[0, : len(prompt)] = prompt
    inputs = {"token_ids": ids, "padding_mask": (np.arange(args.seq_len) < len(prompt))[None]}
    ids = task.generate(inputs, stop_token_ids=[tokenizer.end_id])
    ended = ids["token_ids"][0][ids["padding_mask"][0].astype(bool)]
    print(f"\nA sample:\n{tokenizer.decode(ended)}")


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("gpt2", "llama3"), default="gpt2")
    parser.add_argument("--texts", type=int, default=400, help="train on the first so many texts")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
