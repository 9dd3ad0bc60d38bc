"""Backbones to be captured, with an input each."""

import keras
import numpy as np
import torch

from keras_llm import models

IDS = np.random.default_rng(0).integers(1, 23, (3, 6))


def causal(**sizes):
    return models.CausalTransformer(23, 16, 1, 4, max_length=8, **sizes).backbone


def seq2seq(**sizes):
    return models.Seq2SeqTransformer(23, 16, 1, 4, max_length=8, **sizes).backbone


def embedding():
    """A backbone whose call has no `training`."""
    layer = keras.layers.Embedding(23, 4)
    layer.build()
    return layer, torch.tensor(IDS)


BACKBONES = {
    "embedding": embedding,
    "causal": lambda: (causal(), torch.tensor(IDS)),
    "padded": lambda: (causal(pad_id=0, num_key_value_heads=2), torch.tensor(IDS)),
    "dropout": lambda: (causal(dropout=0.3), torch.tensor(IDS)),
    "bfloat16": lambda: (causal(dtype="mixed_bfloat16"), torch.tensor(IDS)),
    "seq2seq": lambda: (
        seq2seq(),
        {"encoder_ids": torch.tensor(IDS), "decoder_ids": torch.tensor(IDS[:, :4])},
    ),
}


def run(forward, layer, inputs, training):
    """The outputs and the gradients of their squares' sum, from one random state."""
    keras.utils.set_random_seed(3)
    layer.zero_grad()
    outputs = forward(inputs, training=training)
    outputs.square().sum().backward()
    return outputs.detach(), [v.value.grad for v in layer.trainable_variables]
