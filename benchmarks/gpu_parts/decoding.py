"""Greedy decoding: `generate` beside that of transformers, eager and compiled."""

import statistics
import time

import torch

from gpu_parts.rows import free_memory

# vocab, d_model, layers, heads; prompt and new tokens
SIZES, PROMPT, NEW = (50_304, 768, 12, 12), 64, 128
SMALL_SIZES, SMALL_PROMPT, SMALL_NEW = (64, 16, 1, 2), 4, 6


def run(rows):
    sizes, prompt, new = (
        (SMALL_SIZES, SMALL_PROMPT, SMALL_NEW) if rows.small else (SIZES, PROMPT, NEW)
    )
    for side, make in SIDES.items():
        generate = None
        with rows.side(side):
            generate = make(sizes, prompt + new, rows.device)
        for batch in (1, 2 if rows.small else 32) if generate else ():
            label = f"{side}, batch {batch}"
            with rows.side(label):
                rows.add(label, **measured(generate, sizes[0], batch, prompt, new))
        generate = None
        free_memory(rows.device)


def measured(generate, vocab, batch, prompt, new):
    """Seconds of the first call, which compiles, and the tokens a second of later ones."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocab, (batch, prompt), generator=generator)
    seconds = []
    while len(seconds) < 2 or (len(seconds) < 5 and sum(seconds[1:]) < 2):
        begin = time.perf_counter()
        length = generate(ids, new)
        seconds.append(time.perf_counter() - begin)
        if length != prompt + new:
            raise RuntimeError(f"{length} tokens instead of {prompt + new}")
    median = statistics.median(seconds[1:])
    return {
        "tokens_per_second": batch * new / median,
        "ms_per_token": 1e3 * median / new,
        "first_call_s": seconds[0],
    }


def ours(sizes, length, device):
    from keras_llm import models

    dtype = "bfloat16" if device == "cuda" else None
    model = models.CausalTransformer(*sizes, max_length=length, dtype=dtype)

    def generate(ids, new):
        return model.generate(ids.numpy(), max_new_tokens=new).shape[1]

    return generate


def llama(static):
    def make(sizes, length, device):
        import transformers

        vocab, d_model, layers, heads = sizes
        config = transformers.LlamaConfig(
            vocab_size=vocab,
            hidden_size=d_model,
            intermediate_size=64 * -(-d_model * 8 // 3 // 64),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = transformers.LlamaForCausalLM(config).eval()
        model = model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
        # With a static cache, on a GPU, generate compiles the model's forward by itself.
        cache = {"cache_implementation": "static"} if static else {}

        def generate(ids, new):
            ids = ids.to(device)
            options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, **cache}
            return (
                model.generate(ids, attention_mask=torch.ones_like(ids), **options).cpu().shape[1]
            )

        return generate

    return make


SIDES = {"ours": ours, "transformers, compiled": llama(True), "transformers": llama(False)}
