"""A `LanguageModel` that is a KerasHub task, seen from inside."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_llm.backend.host import to_numpy
from keras_llm.backend.keras_private import all_layers, made_from
from keras_llm.models.keras_hub_backbone import IDS, KerasHubBackbone
from keras_llm.models.keras_hub_head import KerasHubHead
from keras_llm.models.language_model import LanguageModel
from keras_llm.names_elsewhere import NamesInside


@keras.saving.register_keras_serializable(package="keras_llm")
class KerasHubModel(NamesInside, LanguageModel):
    """What `from_keras_hub` returns: a KerasHub task as backbone and head, with shared weights.

    The two are cut out of the task's own graph of operations, before its last layer with weights.
    If that layer is found to multiply by a matrix, with or without a soft cap, training never holds
    the logits of a batch; otherwise `explain` says why it does.

    Args:
        task: A `keras_hub.models.CausalLM` or `Seq2SeqLM`.
        **kwargs: Keras's own: `name`, `trainable`.

    Call arguments:
        inputs: KerasHub's dictionary, `{"token_ids", "padding_mask"}` of a causal model; or of such
            a model ids alone, `[batch, length]`, all of them tokens. `fit`, `evaluate` and
            `predict` also take a list of texts, if the task has a preprocessor.

    Returns:
        Logits `[batch, length, vocab]`.

    Attributes:
        task: The task.
    """

    inside = "task"

    def __init__(self, task: Any, **kwargs: Any) -> None:
        hidden, head = cut(task)
        policy = task.dtype_policy
        backbone = KerasHubBackbone(
            keras.Model(task.input, hidden), vocab_sizes(task), dtype=policy, name="backbone"
        )
        super().__init__(backbone, head, dtype=policy, **kwargs)
        # A function, because Keras would count and save the task's layers once more.
        self._task: Any = lambda: task
        self.built = True

    @property
    def task(self) -> Any:
        """The task, whose weights are these."""
        return self._task()

    def why_head_is_no_matrix(self) -> str:
        """Why `head_matrix` is not all that the head does; empty where it is."""
        why = self.head.why_no_matrix()
        return why and f"the head, a {type(self.head.layer).__name__}, {why}"

    def preprocess(self, texts: Any, ignore_index: int | None = None) -> tuple:
        """Texts as the task's preprocessor cuts, pads and shifts them.

        Args:
            texts: A list of strings, or what else the preprocessor takes.
            ignore_index: The label of padding, or None.

        Returns:
            `(inputs, labels, None)`; without an `ignore_index` the labels as they are, and weights
            that are 0 at padding.

        Raises:
            ValueError: the task has no preprocessor.
            ImportError: its preprocessor needs a package that is not installed.
        """
        preprocessor = self.task.preprocessor
        if preprocessor is None:
            raise ValueError(
                f"{type(self.task).__name__} has no preprocessor to read texts with: give ids, for "
                "example batches of data.causal_lm(texts, tokenizer). Received: texts"
            )
        try:
            parts = preprocessor(as_lists(texts))
        except ImportError as error:
            raise ImportError(
                f"{type(preprocessor).__name__} cannot read texts here, for want of a package: "
                "give ids, for example batches of data.causal_lm(texts, tokenizer). "
                f"Received: {error}"
            ) from error
        x, y, weights = keras.tree.map_structure(
            to_numpy, keras.utils.unpack_x_y_sample_weight(parts)
        )
        if ignore_index is None or weights is None:
            return x, y, weights
        return x, np.where(weights, y, ignore_index), None

    def prepared(self, x, y, sample_weight, *args, **kwargs):
        """Texts are made into ids first."""
        if is_text(x):
            if y is not None or sample_weight is not None:
                raise ValueError(
                    "Labels and weights are made from the texts: fit(texts). "
                    f"Received: y={type(y).__name__}, sample_weight={type(sample_weight).__name__}"
                )
            loss = None if self.step is None else self.step.loss
            x, y, sample_weight = self.preprocess(x, loss and loss.ignore_index)
        return super().prepared(x, y, sample_weight, *args, **kwargs)

    # Saving

    def get_config(self) -> dict[str, Any]:
        """The task, serialised; not how its own `compile` was called."""
        try:
            task = keras.saving.serialize_keras_object(self.task)
        except Exception as error:
            name = type(self.task).__name__
            raise ValueError(
                f"{name} cannot be saved with this model: {error} Save the task, which has the "
                "trained weights, by model.task.save_to_preset(folder)"
            ) from error
        task.pop("compile_config", None)
        config = super(LanguageModel, self).get_config()
        del config["dtype"]  # the task has one
        return {**config, "task": task}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KerasHubModel":
        """Rebuilds the model from `get_config`'s dictionary."""
        return cls(**config | {"task": keras.saving.deserialize_keras_object(config["task"])})

    def save_assets(self, dir_path: str) -> None:
        """Keras's hook: the tokenizer's vocabulary, which no weight holds."""
        for name, layer in self._with_assets():
            folder = Path(dir_path) / name
            folder.mkdir(parents=True)
            layer.save_assets(str(folder))

    def load_assets(self, dir_path: str) -> None:
        """Keras's hook: what `save_assets` wrote."""
        for name, layer in self._with_assets():
            layer.load_assets(str(Path(dir_path) / name))

    def _with_assets(self) -> list:
        """The layers of the preprocessor that have files, each with a name for them."""
        preprocessor = self.task.preprocessor
        layers = [] if preprocessor is None else all_layers(preprocessor)
        return [(f"{i}", layer) for i, layer in enumerate(layers) if hasattr(layer, "save_assets")]


def cut(task: Any) -> tuple[keras.KerasTensor, KerasHubHead]:
    """The hidden vectors that the last layer with weights reads, and all from that layer on."""
    tensor, calls = task.output, []
    while True:
        made = made_from(tensor)
        if len(made.inputs) != 1:
            raise ValueError(
                "The last layer with weights must read hidden vectors alone: give "
                "models.LanguageModel(backbone, head) the two parts. "
                f"Received: {type(task).__name__}, which ends with "
                f"{type(made.operation).__name__} of {len(made.inputs)} tensors"
            )
        [tensor] = made.inputs
        calls.insert(0, made.again)
        if getattr(made.operation, "variables", None):
            sizes = tensor.shape[-1], task.output.shape[-1]
            head = KerasHubHead(made.operation, calls, *sizes, dtype=task.dtype_policy, name="head")
            return tensor, head


def vocab_sizes(task: Any) -> dict[str, int]:
    """The number of ids there are, by the name of the input."""
    backbone, sizes = task.backbone, {}
    for name in task.input:
        if name.endswith(IDS):
            # Some decoders have a table of their own.
            own = getattr(backbone, name.replace(IDS, "token_embedding"), None)
            sizes[name] = (own or backbone.token_embedding).input_dim
    return sizes


def as_lists(texts: Any) -> Any:
    """Arrays of texts as lists of them, which KerasHub reads without TensorFlow."""
    if isinstance(texts, dict):
        return {key: as_lists(value) for key, value in texts.items()}
    return texts.tolist() if isinstance(texts, np.ndarray) else texts


def is_text(x: Any) -> bool:
    """Whether these are texts: strings in a list or an array, perhaps in a dictionary."""
    if isinstance(x, dict):
        return bool(x) and all(map(is_text, x.values()))
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "UO" and is_text(x[:1].tolist())
    return isinstance(x, list | tuple) and bool(x) and isinstance(x[0], str)
