"""What is told at `compile` and on the first batch: mistakes that raise no error."""
