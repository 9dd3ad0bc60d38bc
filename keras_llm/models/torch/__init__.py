"""Models of PyTorch that others wrote, as what compile and fit are called on."""
