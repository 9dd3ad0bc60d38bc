"""Small KerasHub tasks with random weights, and batches for them."""

import sys

import keras
import numpy as np
import pytest

V = 41
SIZES = dict(vocabulary_size=V, num_layers=1, hidden_dim=16, intermediate_dim=24)
GEMMA = dict(num_query_heads=2, num_key_value_heads=1, head_dim=8)
GEMMA_2 = GEMMA | dict(
    query_head_dim_normalize=False,
    use_post_ffw_norm=True,
    use_post_attention_norm=True,
    final_logit_soft_cap=30.0,
    attention_logit_soft_cap=50.0,
    use_sliding_window_attention=True,
    sliding_window_size=4,
)
QUERIES = dict(num_query_heads=4, num_key_value_heads=2)
# Class name, and what it needs beside the sizes.
TASKS = {
    "gpt2": ("GPT2", "CausalLM", dict(num_heads=2, dropout=0.0, max_sequence_length=16)),
    "llama3": ("Llama3", "CausalLM", QUERIES),
    "gemma": ("Gemma", "CausalLM", GEMMA),
    "gemma2": ("Gemma", "CausalLM", GEMMA_2),
    "qwen3": ("Qwen3", "CausalLM", QUERIES | dict(head_dim=8)),
    "falcon": ("Falcon", "CausalLM", dict(num_attention_heads=2, attention_dropout_rate=0.0,
                                          feedforward_dropout_rate=0.0)),
    "opt": ("OPT", "CausalLM", dict(num_heads=2, dropout=0.0, max_sequence_length=16)),
    "mixtral": ("Mixtral", "CausalLM", QUERIES | dict(num_experts=2, top_k=1)),
    "bart": ("Bart", "Seq2SeqLM", dict(num_heads=2, dropout=0.0, max_sequence_length=16)),
    "t5": ("T5", "Seq2SeqLM", dict(num_heads=2, dropout=0.0)),
}  # fmt: skip


def import_keras_hub():
    """`keras_hub`, imported as where TensorFlow is missing, which is faster, unless it is here."""
    if "tensorflow" in sys.modules or "keras_hub" in sys.modules:
        return pytest.importorskip("keras_hub")
    sys.modules["tensorflow"] = None
    try:
        return pytest.importorskip("keras_hub")
    finally:
        del sys.modules["tensorflow"]


def backbone(name, **changes):
    hub = import_keras_hub()
    family, _, more = TASKS[name]
    return getattr(hub.models, f"{family}Backbone")(**SIZES | more | changes)


def task(name, **changes):
    """A task whose weights are large enough to tell one model from another."""
    hub = import_keras_hub()
    family, kind, _ = TASKS[name]
    made = getattr(hub.models, family + kind)(backbone(name, **changes), preprocessor=None)
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        noise = 0.1 * rng.standard_normal(variable.shape)
        variable.assign(variable + noise.astype("float32"))
    return made


def task_with_preprocessor():
    """A GPT-2 that reads texts of a few letters."""
    hub = import_keras_hub()
    letters = [*"abcdef", "Ġ", "Ġa", "ab"]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *letters])}
    tokenizer = hub.models.GPT2Tokenizer(vocabulary, ["Ġ a", "a b"])
    return hub.models.GPT2CausalLM(
        backbone("gpt2", vocabulary_size=len(vocabulary)),
        hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8),
    )


def own_task(logits_of):
    """A task of a user's own, with another end."""

    class OwnLM(import_keras_hub().models.CausalLM):
        def __init__(self, backbone, preprocessor=None):
            self.backbone, self.preprocessor = backbone, preprocessor
            super().__init__(backbone.input, logits_of(backbone, backbone(backbone.input)))

    return OwnLM(backbone("gpt2"))


def batch(task, rows=4, seed=0):
    """Inputs and labels: one row is short, and one has no label at all."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, V, (rows, 9))
    x, y, mask = ids[:, :-1], ids[:, 1:].copy(), np.ones((rows, 8), "int32")
    mask[1, 5:] = 0
    y[1, 5:] = y[2] = -100
    inputs = {"token_ids": x, "padding_mask": mask}
    if "encoder_token_ids" in task.input:
        source = rng.integers(1, V, (rows, 6))
        inputs = {f"decoder_{key}": value for key, value in inputs.items()} | {
            "encoder_token_ids": source,
            "encoder_padding_mask": (np.arange(6) < rng.integers(3, 6, (rows, 1))).astype("int32"),
        }
    return inputs, y


def whole_logits_loss(task, inputs, y):
    """The mean loss of the labels that are not -100, by Keras and float64 on the task's logits."""
    logits = keras.ops.convert_to_numpy(keras.ops.stop_gradient(task(inputs))).astype("float64")
    each = keras.losses.sparse_categorical_crossentropy(
        np.maximum(y, 0), logits.astype("float32"), from_logits=True
    )
    return float(keras.ops.convert_to_numpy(each)[y != -100].astype("float64").mean())
