"""What only TensorFlow has."""
