"""`keras_llm.trace`: one training step, stage by stage."""
