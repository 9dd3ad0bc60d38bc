"""`models.from_transformers` on every architecture of transformers that can be made small.

    python benchmarks/every_architecture.py [llama mamba ...]

Each model of the tables of `AutoModelForCausalLM` and `AutoModelForSeq2SeqLM` is made with random
weights and small sizes, by the names that configurations have for them. One step of SGD at rate 1
then shows the loss and all gradients, beside the model's own `labels=` loss by autograd. What
cannot be made small, or fails by itself, is listed as such. No times.
"""

import argparse
import collections
import copy
import logging
import os
import signal
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")

VOCAB, SECONDS, MOST_PARAMETERS = 97, 60, 3e6
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "query_pre_attn_scalar"), 8),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), 0),
    **{"vocab_size": VOCAB, "num_key_value_heads": 2, "num_experts_per_tok": 2},
    **{"bos_token_id": 1, "eos_token_id": 2, "n_group": 1, "topk_group": 1},
    # BigBird makes its attention anew, with the dropout of its configuration, in its first call.
    "attention_probs_dropout_prob": 0.0,
}
DROPOUTS = ("p", "dropout", "attention_dropout", "activation_dropout", "layerdrop")
DROPOUTS += ("attn_dropout", "residual_dropout", "router_jitter_noise", "input_jitter_noise")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    signal.signal(signal.SIGALRM, too_long)
    counts = collections.Counter()
    for name, class_name in tables():
        if names and name not in names:
            continue
        signal.alarm(SECONDS)
        try:
            verdict, note = look_at(name, class_name)
        except Exception as error:  # one that fails must not keep the others from being seen
            verdict, note = "REFUSED", f"{type(error).__name__}: {error}".replace("\n", " ")[:160]
        finally:
            signal.alarm(0)
        counts[verdict] += 1
        print(f"{name:24} {class_name:36} {verdict:8} {note}", flush=True)
    print(dict(counts))


def too_long(*_):
    raise TimeoutError(f"more than {SECONDS} s")


def tables():
    """Names of architectures, each with the class of its model."""
    from transformers.models.auto import modeling_auto

    for table in ("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM"):
        for name, classes in getattr(modeling_auto, f"{table}_MAPPING_NAMES").items():
            yield name, classes[0] if isinstance(classes, tuple) else classes


def look_at(name, class_name):
    """A verdict, and what led to it."""
    import torch

    try:
        model = make(name, class_name)
    except TimeoutError:
        raise
    except Exception as error:
        return "UNMADE", f"{type(error).__name__}: {str(error)[:80]}".replace("\n", " ")
    if model is None:
        return "LARGE", "by these sizes"
    batch, reference = batch_of(), copy.deepcopy(model).train()
    try:
        own = reference(**batch).loss
        own.backward()
    except TimeoutError:
        raise
    except Exception as error:
        return "ITSELF", f"{type(error).__name__}: {str(error)[:80]}".replace("\n", " ")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    wrapped, loss = trained(model, batch)
    worst = largest = 0.0
    for parameter_name, parameter in reference.named_parameters():
        gradient = parameter.grad
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        change = before[parameter_name] - model.get_parameter(parameter_name).detach()
        worst = max(worst, (change - gradient).abs().max().item())
        largest = max(largest, gradient.abs().max().item())
    difference = abs(loss - own.item())
    same = difference < 1e-5 and worst < 1e-5 * max(largest, 1.0)
    note = f"loss {difference:.0e}, gradients {worst:.0e} of {largest:.1g}"
    reason = wrapped.step.why_logits()
    return "same" if same else "DIFFERS", note + (f"; logits held: {reason}" if reason else "")


def trained(model, batch):
    """The model after one step, and the step's loss."""
    import keras

    from keras_llm import losses, models

    wrapped = models.from_transformers(model)
    wrapped.compile(keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy())
    return wrapped, wrapped.fit(batch, batch_size=3, verbose=0).history["loss"][0]


def make(name, class_name):
    """A small random model without noise in training; None where it would be large."""
    import torch
    import transformers

    config_class = transformers.CONFIG_MAPPING[name]
    known = config_class()
    sizes = {k: v for k, v in SIZES.items() if hasattr(known, k)}
    config, cls = config_class(**sizes), getattr(transformers, class_name)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    elif hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        if sum(p.numel() for p in cls(config).parameters()) > MOST_PARAMETERS:
            return None
    torch.manual_seed(0)
    model = cls(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    for part in model.modules():
        for dropout in DROPOUTS:
            if isinstance(getattr(part, dropout, None), float):
                setattr(part, dropout, 0.0)
    return model


def batch_of():
    """Three rows, a part of one not counted, another one short."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (3, 16), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, 11:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :4] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    main()
