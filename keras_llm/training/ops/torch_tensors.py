"""PyTorch's tensors on JAX and TensorFlow, where a data set may be made of them."""

import torch


def of_torch(part):
    """A tensor of PyTorch as an array; anything else as it is.

    Keras would load its PyTorch backend for it in `fit`, and hand it to a compiled function in
    `train_on_batch`.
    """
    if not isinstance(part, torch.Tensor):
        return part
    tensor = part.detach().cpu()
    # numpy has no bfloat16.
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
