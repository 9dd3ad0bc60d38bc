"""A student that learns from a teacher and from labels."""

import contextlib
from typing import Any

from keras import ops

from keras_llm.arguments import check_number
from keras_llm.backend import divergence_pass
from keras_llm.models.language_model import LanguageModel
from keras_llm.models.teacher import Teacher
from keras_llm.training import TokenModel
from keras_llm.value_text import value_text


class Distillation(TokenModel):
    """A student that is trained on labels and on what a teacher says at each token:

        (1 - alpha) * loss(labels) + alpha * T^2 * KL(softmax(z_teacher / T) || softmax(z / T))

    The divergence is summed over the vocabulary and divided by the tokens that count, as the loss
    is (Hinton et al. 2015, https://arxiv.org/abs/1503.02531; T^2 keeps gradients of one size
    whatever T is). Neither model's logits of a batch are ever in memory. `compile` takes one of our
    token losses for the labels; metrics are those of the student, from its own probabilities.

    The teacher runs in evaluation mode. It is not trained, and not saved: the student is
    `model.student`, a model of its own, with the weights that `fit` has trained.

    Args:
        teacher: A built `LanguageModel` over the student's vocabulary; also one of
            `models.from_transformers` or `models.from_keras_hub`.
        student: A `LanguageModel`. Teacher and student may be of different kinds: the teacher is
            given the student's inputs under its own names, ids and the mask of padding.
        alpha: The teacher's share of the loss, from 0 to 1.
        temperature: T, above 0.
        **kwargs: Keras's own: `name`, `trainable`.

    Call arguments:
        inputs: What teacher and student take. With a student of `models.from_transformers`, `fit`
            and `evaluate` also take rows of `datasets` and dictionaries with `labels` inside.

    Returns:
        The student's logits.

    Raises:
        TypeError: teacher or student is no `LanguageModel`.
        ValueError: alpha or temperature is out of range, a head is not a matrix, or the
            vocabularies have different sizes.

    Example:
    >>> import numpy as np
    >>> from keras_llm import losses, models
    >>> def make(d_model):
    ...     return models.CausalTransformer(20, d_model=d_model, num_layers=1, num_heads=2)
    >>> teacher, student = make(16), make(8)
    >>> x = np.array([[3, 4, 5, 6]])
    >>> _ = teacher(x), student(x)
    >>> model = Distillation(teacher, student, alpha=0.5, temperature=2.0)
    >>> model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    >>> history = model.fit(x, np.array([[4, 5, 6, 7]]), verbose=0)
    """

    def __init__(
        self,
        teacher: LanguageModel,
        student: LanguageModel,
        alpha: float = 0.5,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        for name, model in (("teacher", teacher), ("student", student)):
            check_part(name, model)
        alpha = check_number(alpha, "alpha", "[0, 1]")
        temperature = check_number(temperature, "temperature", "(0, inf)")
        sizes = [model.head_matrix().kernel.shape[1] for model in (teacher, student)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                "Teacher and student must have the same vocabulary. "
                f"Received: {sizes[0]:,} and {sizes[1]:,} ids"
            )
        super().__init__(**kwargs)
        self.student = student
        self.teacher = Teacher(teacher)
        self.alpha, self.temperature = alpha, temperature
        self.built = True

    def call(self, inputs, training=None):
        """The student's logits."""
        return self.student(inputs, training=training)

    def compile(self, *args, **kwargs):
        """As of `LanguageModel`; the loss is for the labels.

        Raises:
            ValueError: the loss is not one of our token losses.
        """
        super().compile(*args, **kwargs)
        if self.step is None:
            raise ValueError(
                "Distillation must be compiled with a loss of keras_llm for the labels, such as "
                f"losses.MaskedSparseCategoricalCrossentropy(). Received: loss={self.loss!r}"
            )
        # A student of transformers has no graph: its own code is compiled.
        run_compiled = getattr(self.backbone, "run_compiled", None)
        if run_compiled is not None:
            run_compiled(self.step.jit_compile is True)

    explain = LanguageModel.explain

    # What the step asks

    @property
    def backbone(self):
        """The student's."""
        return self.student.backbone

    @property
    def head(self):
        """The student's."""
        return self.student.head

    @contextlib.contextmanager
    def modes_kept(self):
        """Context manager that gives both models' parts their modes back."""
        with self.teacher.model.modes_kept(), self.student.modes_kept():
            yield

    @property
    def reader(self):
        """The student's: batches are what that takes."""
        return self.student.reader

    def why_logits(self) -> str:
        """Why the student's logits cannot be left out."""
        return self.student.why_logits()

    def has_untrained_layers(self) -> bool:
        """Whether the student's are."""
        return self.student.has_untrained_layers()

    def head_matrix(self):
        """The student's."""
        return self.student.head_matrix()

    def mixed(self, inputs, hidden, tokens, objective, loss, training):
        """What is minimised and the sum of the losses, with the teacher's part.

        Args:
            inputs: The batch.
            hidden: The student's hidden vectors `[tokens, d_model]`.
            tokens: The `FlatTokens`.
            objective, loss: Those of the labels.
            training: Whether gradients are wanted.
        """
        taught = self.teacher.hidden_vectors(inputs)
        taught = ops.reshape(taught, (-1, taught.shape[-1]))
        divergence = divergence_pass(
            *(hidden, self.head_matrix(), taught, self.teacher.head_matrix()),
            *(tokens.weights, self.temperature, training),
        )
        mine = 1.0 - self.alpha
        objective = mine * objective + self.alpha * (divergence * tokens.scale)
        return objective, mine * loss + self.alpha * ops.stop_gradient(divergence)

    def mixing(self) -> tuple[str, str]:
        """What the loss of the labels is mixed with, and what that means: for `explain`."""
        mine, share, t = (value_text(v) for v in (1 - self.alpha, self.alpha, self.temperature))
        text = f"{mine} * this + {share} * {t}^2 * sum over all tokens of q * (log q - log p)"
        return text, f"q = the teacher's distribution; both softened by the temperature {t}"

    def get_config(self):
        """Refused: a file would hold no teacher."""
        raise NotImplementedError(
            "A Distillation is not saved: its teacher is not part of it. Save model.student"
        )


def check_part(name: str, model) -> None:
    """Raises unless it is a built model with a head that is a matrix."""
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"{name} must be a LanguageModel, such as models.CausalTransformer or what "
            f"models.from_transformers returns. Received: {type(model).__name__}"
        )
    reason = model.why_logits()
    if reason:
        raise ValueError(f"{name} must have a head that is a matrix. Received: {reason}")
