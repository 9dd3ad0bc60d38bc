"""Running a model without recording anything for a gradient."""

import torch

# Not torch.inference_mode: a tensor made under it could never enter a later gradient.
inference_mode = torch.no_grad
