"""A model that is asked, and neither trained nor saved."""

from collections.abc import Mapping

from keras import ops

from keras_llm.backend.inference import inference_mode
from keras_llm.models.keras_hub_backbone import IDS, MASK, KerasHubBackbone
from keras_llm.models.language_model import LanguageModel

NAMES = {IDS: "input_ids", MASK: "attention_mask"}


class Teacher:
    """A model that is asked and not trained: no attribute that Keras would track or save.

    Args:
        model: A `LanguageModel`, built.
    """

    def __init__(self, model: LanguageModel):
        self.model = model

    def hidden_vectors(self, inputs):
        """Its hidden vectors of a student's inputs, in evaluation mode, without gradients."""
        with inference_mode():
            return ops.stop_gradient(self.model.backbone(self.own(inputs), training=False))

    def own(self, inputs):
        """A student's inputs as this model takes them.

        Raises:
            ValueError: they have something that the model has no input for.
        """
        if self.model.reader is not None:
            return self.model.reader.read(inputs, None, None)[0]
        if not isinstance(inputs, Mapping) or not {"input_ids", IDS} & set(inputs):
            return inputs
        others = {NAMES.get(name, name): value for name, value in inputs.items()}
        ids, mask = others.pop("input_ids"), others.pop("attention_mask", None)
        if others:
            raise ValueError(
                f"The teacher, a {type(self.model).__name__}, has no input for {sorted(others)}. "
                "Give batches of input_ids and attention_mask, or a teacher of the student's kind"
            )
        if isinstance(self.model.backbone, KerasHubBackbone):
            return {IDS: ids, MASK: ops.ones_like(ids, dtype="int32") if mask is None else mask}
        # It has no mask, and needs none for padding behind all tokens.
        if mask is not None and bool(ops.any(mask[:, :-1] < mask[:, 1:])):
            raise ValueError(
                f"Rows must be padded on the right: the teacher, a {type(self.model).__name__}, "
                "has no attention_mask. Received: a mask with 1 behind 0"
            )
        return ids

    def head_matrix(self):
        """Its head, without gradients."""
        head = self.model.head_matrix()
        kernel, bias = (None if x is None else ops.stop_gradient(x) for x in head[:2])
        return head._replace(kernel=kernel, bias=bias)
