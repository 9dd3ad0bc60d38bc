"""Fine-tune a model of Hugging Face transformers on chats, in place, by compile and fit.

Without arguments it makes all that it needs: chats about numbers, a tokenizer, and a small Llama
with random weights, which learns to answer in about a minute. `--model FOLDER` is a model of your
own with its tokenizer, `--data FILE.jsonl` your chats: a line is `{"messages": [{"role": "user",
"content": "..."}, {"role": "assistant", "content": "..."}]}`. With `--lora`, only adapters of peft
are trained and saved; they are made for models that were trained before, so expect little of them
without `--model`. With `--bits 4` the rest of your model has 4 bits a weight (QLoRA). Needs PyTorch
and `pip install "keras_llm[peft]"`, for `--bits` `"keras_llm[bitsandbytes]"`.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras
import tokenizers
import transformers

from keras_llm import data, losses, metrics, models, optimizers, schedules


def main():
    args = arguments()
    keras.utils.set_random_seed(args.seed)
    chats = chats_of(args.data) if args.data else chats_about_numbers(args.chats)
    held_out, chats = chats[: len(chats) // 10], chats[len(chats) // 10 :]
    hf, tokenizer = model_of(args.model, args.bits) if args.model else small_model(chats)
    if args.lora:
        import peft

        if args.bits:
            hf = peft.prepare_model_for_kbit_training(hf)
        config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        hf = peft.get_peft_model(hf, config)

    # Chats -> batches of (ids, labels), where only the tokens of answers are labels.
    shape = {"max_length": args.max_length, "batch_size": args.batch_size}
    train = data.instruction(chats, tokenizer, **shape, shuffle=True, seed=args.seed)
    valid = data.instruction(held_out, tokenizer, **shape)
    print("What the model reads, and between « and » what it learns:")
    data.show(next(iter(train)), tokenizer, rows=2)

    # `model` and `hf` have the same parameters: nothing is copied back after training.
    model = models.from_transformers(hf)
    total_steps = args.epochs * len(train)
    schedule = schedules.WarmupCosineDecay(args.learning_rate, total_steps // 20, total_steps)
    model.compile(
        optimizer=optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy(name="accuracy")],
    )
    before = model.evaluate(valid, verbose=0, return_dict=True)["perplexity"]
    model.fit(train, validation_data=valid, epochs=args.epochs, verbose=args.verbose)
    after = model.evaluate(valid, verbose=0, return_dict=True)["perplexity"]
    print(f"\nPerplexity of answers to held-out chats: {before:.2f} before, {after:.2f} after")

    *question, wanted = held_out[0]["messages"]
    print(f"{question[-1]['content']}\n  the model:  {answer(hf, tokenizer, question)}")
    print(f"  the data:   {wanted['content']}")
    hf.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"Saved {args.output}")


def answer(hf, tokenizer, messages):
    """What the model says next in a chat, by the `generate` of transformers."""
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(hf.device)
    ids = hf.generate(**prompt, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def model_of(folder, bits):
    """A saved model and its tokenizer. In float32: bfloat16 weights would round updates away."""
    options = {"dtype": "float32"}
    if bits:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype="bfloat16",
        )
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    return hf, transformers.AutoTokenizer.from_pretrained(folder)


def chats_of(path):
    """Chats of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def chats_about_numbers(count):
    """Questions and answers, no question twice."""
    pairs = random.Random(0).sample([*itertools.permutations(range(100), 2)], count)
    questions = [f"Which number is larger, {a} or {b}?" for a, b in pairs]
    answers = [f"{max(pair)} is larger than {min(pair)}." for pair in pairs]
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(questions, answers, strict=True)
    ]


CHAT_TEMPLATE = """\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def small_model(chats):
    """A Llama with random weights, and a byte-level BPE tokenizer that splits numbers in digits."""
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((m["content"] for chat in chats for m in chat["messages"]), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=special[0], eos_token=special[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config), tokenizer


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="FOLDER", help="a model of transformers on your disk")
    parser.add_argument("--data", type=Path, metavar="FILE.jsonl", help="chats, one a line")
    parser.add_argument("--lora", action="store_true", help="train adapters of peft only")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="of the model beside adapters")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument(
        "--learning-rate",
        type=float,
        help="(default: 2e-5; with --lora 2e-4; for the model with random weights 3e-3)",
    )
    parser.add_argument("--chats", type=int, default=2000, help="how many to make without --data")
    parser.add_argument("--verbose", type=int, default=1, choices=(0, 1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/finetuned"))
    args = parser.parse_args()
    if args.bits and not (args.model and args.lora):
        parser.error("--bits needs --model FOLDER and --lora")
    if args.learning_rate is None:
        args.learning_rate = 3e-3 if not args.model else 2e-4 if args.lora else 2e-5
    return args


if __name__ == "__main__":
    main()
