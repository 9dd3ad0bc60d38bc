"""An encoder-decoder in float64 numpy, one pair at a time and without padding: a reference."""

import numpy as np


def logits(model, source, target):
    """What `Seq2SeqTransformer` computes for one source and one target, `[length, vocab]`."""
    sizes = model.get_config()
    w = {weight.path: np.asarray(weight.numpy(), "float64") for weight in model.weights}
    heads = sizes["num_heads"]
    groups = heads // sizes["num_key_value_heads"]
    head_dim = sizes["d_model"] // heads

    def norm(x, path):
        mean_square = np.square(x).mean(-1, keepdims=True)
        return x / np.sqrt(mean_square + sizes["epsilon"]) * w[f"{path}/scale"]

    def turn(x):
        """Each plane (i, i + head_dim / 2) of each head as a complex number, times a unit."""
        half = head_dim // 2
        frequencies = sizes["rope_theta"] ** (-np.arange(half) / half)
        units = np.exp(1j * np.arange(len(x))[:, None, None] * frequencies)
        turned = (x[..., :half] + 1j * x[..., half:]) * units
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attend(x, other, path, rotary, allowed):
        q, k, v = (
            (inputs @ w[f"{path}/{name}/kernel"]).reshape(len(inputs), -1, head_dim)
            for inputs, name in ((x, "query"), (other, "key"), (other, "value"))
        )
        if rotary:
            q, k = turn(q), turn(k)
        k, v = k.repeat(groups, axis=1), v.repeat(groups, axis=1)
        scores = np.exp(np.einsum("thd,shd->hts", q, k) / np.sqrt(head_dim)) * allowed
        weights = scores / scores.sum(-1, keepdims=True)
        gathered = np.einsum("hts,shd->thd", weights, v).reshape(len(x), -1)
        return gathered @ w[f"{path}/output/kernel"]

    def feed_forward(x, path):
        gate = x @ w[f"{path}/gate/kernel"]
        swish = gate / (1 + np.exp(-gate))
        return (swish * (x @ w[f"{path}/up/kernel"])) @ w[f"{path}/down/kernel"]

    def block(x, path, allowed, source=None):
        normed = norm(x, f"{path}/self_attention_norm")
        x = x + attend(normed, normed, f"{path}/self_attention", True, allowed)
        if source is not None:
            normed = norm(x, f"{path}/cross_attention_norm")
            x = x + attend(normed, source, f"{path}/cross_attention", False, 1)
        return x + feed_forward(norm(x, f"{path}/feed_forward_norm"), f"{path}/feed_forward")

    source_table = w["backbone/source_embedding/embeddings"]
    target_table = w.get("backbone/target_embedding/embeddings", source_table)
    s = source_table[source]
    for i in range(sizes["num_layers"]):
        s = block(s, f"backbone/encoder_block_{i}", 1)
    s = norm(s, "backbone/encoder_norm")

    x = target_table[target]
    causal = np.tril(np.ones((len(target), len(target))))
    for i in range(sizes["num_layers"]):
        x = block(x, f"backbone/decoder_block_{i}", causal, s)
    x = norm(x, "backbone/decoder_norm")
    return x @ w.get("head/kernel", target_table.T)
