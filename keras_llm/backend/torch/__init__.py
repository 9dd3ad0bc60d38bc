"""What runs on PyTorch tensors directly."""
