"""Scaled dot-product attention by PyTorch's fused kernels, without the scores in memory."""

import torch
import torch.nn.functional as F

from keras_llm.backend.torch.packed_attention import HAS_KERNELS, packed_attention
from keras_llm.backend.torch.tensors import is_on_host


def attend(query, key, value, mask=None, causal=False, segment_ids=None):
    """As in `ops/`. `keras.ops.dot_product_attention` copies its inputs and its output."""
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        # With enable_gqa=True PyTorch keeps the scores of a float32 model in a GPU's memory.
        key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    if segment_ids is not None:
        if is_on_host(query) and HAS_KERNELS:
            return packed_attention(query, key, value, segment_ids)[0]
        # On a GPU, reading the lengths of the segments would be a host-device synchronisation.
        mask = (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]).tril()
        causal = False
    if mask is not None:
        # Not -inf: some kernels return NaN for a row of -inf.
        lowest = torch.finfo(query.dtype).min / 2
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    output = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return output.transpose(1, 2)
