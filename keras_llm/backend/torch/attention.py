"""The product of attention, by PyTorch's kernels that never hold the scores."""

import torch
import torch.nn.functional as F

from keras_llm.backend.torch.packed_attention import HAS_KERNELS, packed_attention
from keras_llm.backend.torch.tensors import is_on_host


def attend(query, key, value, mask=None, causal=False, documents=None):
    """As in `ops/`. `keras.ops.dot_product_attention` would copy all inputs, and so the output."""
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        # Not by enable_gqa: with it PyTorch holds the scores of a float32 model on a GPU.
        key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    if documents is not None:
        if is_on_host(query) and HAS_KERNELS:
            return packed_attention(query, key, value, documents)[0]
        # The lengths of documents are not known to a CPU that does not wait for the GPU.
        mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
        causal = False
    if mask is not None:
        # Not -inf: a row of nothing else would be NaN in some kernels.
        lowest = torch.finfo(query.dtype).min / 2
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    gathered = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    return gathered.transpose(1, 2)
