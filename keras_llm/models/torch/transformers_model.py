"""A model of Hugging Face transformers as what compile and fit are called on."""

import inspect

import keras
import torch

from keras_llm.models.language_model import LanguageModel
from keras_llm.models.torch.modes import modes_kept
from keras_llm.models.torch.outside_batches import BatchReader
from keras_llm.models.torch.outside_checks import inner_model
from keras_llm.models.torch.outside_facts import OutsideFacts
from keras_llm.models.torch.outside_layers import OutsideBackbone, OutsideHead
from keras_llm.models.torch.packing import Packing
from keras_llm.models.torch.quantised_layers import keep_trainable
from keras_llm.names_elsewhere import NamesInside


@keras.saving.register_keras_serializable(package="keras_llm")
class TransformersModel(NamesInside, LanguageModel):
    """What `models.from_transformers` returns; its docstring says what it does.

    Attributes:
        hf: The model that it was made of, with the same parameters.
    """

    inside = "hf"
    # Experts that no token chose, an unused half of an encoder-decoder.
    may_leave_weights_unused = True

    def __init__(self, hf, shift_labels: bool | None = None, dtype=None, **kwargs):
        model = inner_model(hf)
        if not getattr(model, "is_quantized", False):
            model.to(keras.ops.zeros(()).device)
        keep_trainable(model)
        facts = OutsideFacts(model, hf)
        dtype = policy_of(model, dtype)
        super().__init__(
            OutsideBackbone(model, facts, name="backbone", dtype=dtype),
            OutsideHead(facts, name="head", dtype=dtype),
            dtype=dtype,
            **kwargs,
        )
        self.built = True
        # A module as an attribute would be wrapped, tracked and saved by Keras.
        vars(self)["hf"] = hf
        self.shift_labels = shift_labels
        self._why_logits = facts.why_logits
        pad_id = getattr(model.config, "pad_token_id", None)
        self.reader = BatchReader(
            accepted=set(inspect.signature(model.forward).parameters),
            vocab_sizes=facts.vocab_sizes,
            pad_id=0 if pad_id is None else pad_id,
            shifts_labels=facts.shifts_labels if shift_labels is None else shift_labels,
            decoder_inputs=facts.decoder_inputs,
            packing=Packing(model),
        )

    def compile(self, *args, **kwargs):
        """As of `LanguageModel`. The model of transformers is compiled by `jit_compile=True` only:
        its Python code is thin, and little is won."""
        super().compile(*args, **kwargs)
        self.backbone.run_compiled(self.step is not None and self.step.jit_compile is True)

    def call(self, inputs, training=None):
        """Logits `[batch, length, vocab]` of the next token at every position."""
        inputs, _ = self.reader.read(inputs, None, None)
        if training:
            return self.backbone.logits(inputs, training=True)
        with self.modes_kept():
            return self.backbone.logits(inputs)

    def count_params(self):
        """The parameters, quantised ones included, which are no variables."""
        return self.backbone.model.num_parameters()

    def has_untrained_layers(self) -> bool:
        """Whether weights are quantised, and nothing beside them is trained in their place."""
        is_quantised = getattr(self.backbone.model, "is_quantized", False)
        return is_quantised and not hasattr(self.hf, "peft_config")

    def how_to_train(self) -> str:
        """What to write where no weight is trainable and adapters should be."""
        adapters = getattr(self.hf, "peft_config", {}).values()
        if not any(adapter.inference_mode for adapter in adapters):
            return ""
        return "Adapters are trained after PeftModel.from_pretrained(..., is_trainable=True)."

    def compute_output_spec(self, inputs, training=None):
        """Of ids: `[batch, length, vocab]`."""
        ids = inputs
        if isinstance(inputs, dict):
            ids = inputs.get("decoder_input_ids", inputs["input_ids"])
        return keras.KerasTensor((*ids.shape, self.head.vocab_size), self.compute_dtype)

    # What the step asks

    def call_ends_with_head(self) -> bool:
        """No: logits are the model's own."""
        return False

    def why_logits(self) -> str:
        """Why the logits cannot be computed from `head_matrix`; empty where they can."""
        return self._why_logits

    def modes_kept(self):
        """Context manager that gives all parts of the model their modes back.

        Raises:
            RuntimeError: it is another model now, of which the variables are not the parameters.
        """
        self.backbone.check_parameters()
        return modes_kept(self.backbone.model)

    # Saving

    def get_config(self):
        """The class and the configuration of transformers."""
        if hasattr(self.hf, "peft_config"):
            raise NotImplementedError(
                "A model with adapters is not saved as one file. Save the adapters, "
                "model.hf.save_pretrained(folder), or the weights, model.save_weights(...)"
            )
        return {
            "hf": {
                "class_name": type(self.hf).__name__,
                "config": self.hf.config.to_dict(),
                "dtype": str(self.hf.dtype).removeprefix("torch."),
            },
            "shift_labels": self.shift_labels,
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        """A model of the same class, from transformers itself, with weights of its own."""
        import transformers

        config = dict(config)
        saved = config.pop("hf")
        made = getattr(transformers, saved["class_name"], None)
        if not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
            raise ValueError(
                "The saved model must be of a class of transformers. Received: "
                f"class_name={saved['class_name']!r}"
            )
        dtype = getattr(torch, str(saved.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(
                "The saved dtype of a model of transformers must be one of PyTorch, such as "
                f"'bfloat16'. Received: dtype={saved.get('dtype')!r}"
            )
        config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        hf = made(made.config_class.from_dict(saved["config"]))
        return cls(hf.to(dtype), **config)


def policy_of(model, dtype):
    """The dtype policy that is asked for, if it is a mixed one; else that of the weights.

    Raises:
        ValueError: it is neither.
    """
    policy = keras.dtype_policies.get(keras.config.dtype_policy() if dtype is None else dtype)
    if policy.compute_dtype != policy.variable_dtype:
        return policy
    own = str(model.dtype).removeprefix("torch.")
    if dtype is not None and policy.compute_dtype != own:
        raise ValueError(
            "dtype must be a mixed policy, or that of the weights, which stay as they are: call "
            f"model.to(torch.{policy.compute_dtype}) before. Received: dtype={policy.name!r}, with "
            f"weights of {own}"
        )
    return keras.DTypePolicy(own)
