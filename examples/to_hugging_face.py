"""Train here, run elsewhere: a model as a Hugging Face folder, which transformers reads.

A `CausalTransformer` has the architecture of Llama, so llama.cpp, vLLM and their like read the
folder too. Needs transformers: pip install -e ".[hf]"
"""

import argparse
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras
import numpy as np
import torch
import transformers

from keras_llm import data, losses, metrics, models, optimizers


def main():
    args = arguments()
    keras.utils.set_random_seed(0)
    model, tokenizer = train(args)
    model.save_pretrained(args.output, tokenizer)
    print(f"Saved {', '.join(sorted(path.name for path in args.output.iterdir()))}\n")

    # From here on as somebody would who has the folder, and transformers.
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(args.output).eval()
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(args.output)
    inputs = hf_tokenizer(args.prompt, return_tensors="pt")
    with torch.no_grad():
        hf_logits = hf_model(**inputs).logits.numpy()
        hf_ids = hf_model.generate(**inputs, max_new_tokens=args.new_tokens)[0].numpy()

    ids = tokenizer.encode(args.prompt)
    logits = keras.ops.convert_to_numpy(model(np.array([ids])))
    ours = model.generate(ids, max_new_tokens=args.new_tokens, end_id=tokenizer.end_id)
    print(f"keras_llm:    {tokenizer.decode(ours)!r}")
    print(f"transformers: {hf_tokenizer.decode(hf_ids, skip_special_tokens=True)!r}")
    print(f"The logits differ by at most {np.abs(hf_logits - logits).max():.0e}.")
    print(f"The same tokens: {np.array_equal(hf_ids, ours)}")


def train(args):
    """A model that has seen some text, and its tokenizer."""
    corpus = data.load_text(args.text) if args.text else data.load("python_manual")
    tokenizer = data.train_tokenizer(corpus["train"], vocab_size=args.vocab_size)
    batches = data.causal_lm(corpus["train"], tokenizer, seq_len=64, batch_size=8, shuffle=True)
    model = models.CausalTransformer(
        tokenizer.vocab_size, d_model=64, num_layers=2, num_heads=4, num_key_value_heads=2,
        max_length=128,
    )  # fmt: skip
    model.compile(
        optimizer=optimizers.AdamW(3e-3, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=tokenizer.pad_id),
        metrics=[metrics.Perplexity()],
    )
    model.fit(batches, epochs=1, steps_per_epoch=min(args.steps, len(batches)))
    return model, tokenizer


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", help="train on this text file")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--prompt", default="The with statement")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("runs/to_hugging_face"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
