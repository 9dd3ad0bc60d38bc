"""What only JAX has."""
