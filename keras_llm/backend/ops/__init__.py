"""What runs on any backend that Keras has, by `keras.ops`."""
