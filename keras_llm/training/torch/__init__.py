"""The step on PyTorch: gradients in `.grad`, captured graphs."""
