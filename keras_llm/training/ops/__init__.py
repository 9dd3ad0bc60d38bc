"""The step on JAX and TensorFlow: one compiled function of its state."""
