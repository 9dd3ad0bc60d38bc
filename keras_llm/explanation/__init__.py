"""What `keras_llm.explain` and `keras_llm.trace` return: facts first, screens and pages second."""
