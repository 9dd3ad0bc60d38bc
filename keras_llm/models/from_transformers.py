"""Models of Hugging Face transformers, by compile and fit."""

from typing import Any

import keras

from keras_llm.models.language_model import LanguageModel


def from_transformers(
    model: Any, shift_labels: bool | None = None, dtype: Any = None, name: str | None = None
) -> LanguageModel:
    """A model of Hugging Face transformers as what `compile` and `fit` are called on.

    Training happens in place: both have the same parameters, each once, so `model.generate`,
    `model.save_pretrained` and `model.state_dict` have what `fit` has learnt. Everything that our
    own models have works: losses exact per token, metrics, accumulation, micro-batches, `explain`,
    `trace`. Where the head is a matrix, scaled, soft-capped or with a constant added, the logits of
    a batch are never in memory; `explain` tells where they are, and why.

    What a model is like is found by calling it with a few tokens: where its head begins, what it
    makes of the head's product, whether its loss shifts labels. No list of names is asked.

    - `requires_grad` decides what is trained, also if it is set later. So do adapters of `peft`:
      wrap the model that `peft.get_peft_model` returns.
    - Batches are those of Keras, `(ids, labels)` or `({"input_ids": ..., "attention_mask": ...},
      labels)` with the label of each position, or Hugging Face's, `{"input_ids": ..., "labels":
      ...}`, also as rows of `datasets` or from a `DataLoader`. -100 marks a label that is ignored.
    - Weights keep their dtype. Under a policy such as `"mixed_bfloat16"` PyTorch's autocast runs
      the layers.
    - Gradient checkpointing is that of the model: `model.gradient_checkpointing_enable()`.
    - The loss of a router is added where the model's configuration asks for it
      (`output_router_logits=True`).
    - Afterwards each part has the mode, training or evaluation, that it had before.

    Args:
        model: A `transformers` model with a head over the vocabulary, decoder-only or
            encoder-decoder, or a `peft` model of one. It is moved to Keras's device.
        shift_labels: Whether `labels` inside a dictionary are the inputs themselves, of which each
            position predicts the next. None: as the model's own loss takes them. It does not
            concern `y`.
        dtype: A mixed dtype policy; None for Keras's global one, if that is mixed. If not, the
            policy is that of the weights.
        name: The model's name.

    Raises:
        RuntimeError: the backend is not PyTorch.
        TypeError: it is no model of transformers.
        ValueError: it has no head over its vocabulary, looks at later tokens, is spread over
            devices, or learns a prompt; or `dtype` is neither mixed nor that of the weights.

    Example:
    >>> import transformers
    >>> from keras_llm import losses
    >>> config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    >>> hf = transformers.GPT2LMHeadModel(config)
    >>> model = from_transformers(hf)
    >>> model.compile(optimizer="sgd", loss=losses.MaskedSparseCategoricalCrossentropy())
    >>> ids = [[3, 4, 5, 6], [7, 8, 9, 10]]
    >>> history = model.fit({"input_ids": ids, "labels": ids}, verbose=0)
    >>> sorted(history.history)
    ['gradient_norm', 'learning_rate', 'loss', 'tokens_per_second']
    """
    if keras.backend.backend() != "torch":
        raise RuntimeError(
            "from_transformers needs the PyTorch backend, KERAS_BACKEND=torch; on JAX and "
            "TensorFlow use models.from_keras_hub. "
            f"Received: backend {keras.backend.backend()!r}"
        )
    from keras_llm.models.torch.transformers_model import TransformersModel

    return TransformersModel(model, shift_labels, dtype=dtype, name=name)
