"""What happens inside one step of a model that is compiled with a loss of tokens."""

import warnings

import keras
from keras import ops

from keras_llm import backend
from keras_llm.backend.keras_private import known_names
from keras_llm.losses import MaskedLoss
from keras_llm.metrics import TokenMetric
from keras_llm.training.first_batch import FirstBatch
from keras_llm.training.sanity import SanityWarning, compile_messages
from keras_llm.training.token_accounts import TokenAccounts, flat
from keras_llm.training.training_logs import TrainingLogs


class TokenStep(backend.TrainStep, keras.Model):
    """A `keras.Model` whose `loss`, `val_loss` and metrics are exact per token.

    Keras logs the mean of its batches' means. With one of our losses, `compute_loss` asks it for
    sums instead, adds them to the logged loss and hands them to the metrics. With any other loss,
    Keras's own step runs unchanged.
    """

    # Set by compile: the token sums of a `MaskedLoss`, None with any other loss.
    accounts = None
    # Set by fit: the tokens that an update of the last epoch was made from, on average.
    tokens_per_update = None
    # Set in a step of JAX or TensorFlow that needs no logits: `call` ends, and `compute_loss`
    # begins, with the hidden vectors.
    without_logits = False
    # Set while the first step of a `fit` runs where its values can be seen.
    first_batch = None

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        micro_batch_size: int | str | None = None,
    ):
        """Keras's `compile`, with the loss and the metrics checked against each other.

        Warns, with a `SanityWarning`, when a metric counts tokens that the loss ignores, when the
        loss and the model disagree about logits, and when the learning rate is far from usual.
        Arguments that are not named here are as for `keras.Model.compile`.

        Args:
            jit_compile: On PyTorch, whether `torch.compile` makes kernels of the backbone's graph.
                `"auto"` tries it once a run has lasted a minute, and keeps what is faster.
            micro_batch_size: PyTorch only. How many rows of `fit`'s batch are in memory at once;
                the update is that of the whole batch. `"auto"` starts with the whole batch and
                halves when memory runs out.

        Raises:
            TypeError: the optimizer or the loss is one of PyTorch.
            ValueError: the loss has `reduction="none"`, which leaves nothing to minimise;
                `loss_weights` come with one of our losses; the optimizer accumulates gradients
                or there are micro-batches on a backend where that is not exact per token; or
                `micro_batch_size` is not a number of rows.
        """
        check_not_of_torch(optimizer=optimizer, loss=loss)
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        metrics, weighted_metrics = resolve(metrics), resolve(weighted_metrics)
        ours = isinstance(loss, MaskedLoss)
        if ours and loss.reduction == "none":
            raise ValueError(
                "compile needs a loss of one number: use reduction='mean' or reduction='sum'. "
                "Received: a loss with reduction='none'"
            )
        if ours and loss_weights is not None:
            raise ValueError(
                "loss_weights balance several outputs; a loss of tokens stands alone. "
                f"Received: loss_weights={loss_weights}"
            )
        optimizer = keras.optimizers.get(optimizer)
        self.prepare_step(optimizer, loss if ours else None, micro_batch_size, jit_compile)
        self.micro_batch_size = micro_batch_size
        self.tokens_per_update = None
        kwargs = {
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        self.accounts = TokenAccounts(loss, metrics, weighted_metrics) if ours else None
        if ours:
            # Keras gets what is not counted here; an empty list clears what it had before.
            left, left_weighted = self.accounts.left, self.accounts.left_weighted
            again = [] if self.compiled else None
            super().compile(
                optimizer, metrics=left or again, weighted_metrics=left_weighted or again, **kwargs
            )
            self.loss = loss
        else:
            super().compile(optimizer, loss, loss_weights, metrics, weighted_metrics, **kwargs)
        every_metric = [*flat(metrics), *flat(weighted_metrics)]
        for message in compile_messages(self, optimizer, loss, every_metric):
            warnings.warn(message, SanityWarning, stacklevel=2)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch; the logged loss and the metrics are updated on the way."""
        if self.first_batch is not None:
            self.first_batch.look_at_predictions(y_pred)
        if self.accounts is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if self.without_logits:
            return self.one_pass(y, y_pred, sample_weight, training)
        objective, tokens = self.accounts.count(y, y_pred, sample_weight, self.penalty())
        self.record_tokens(tokens)
        return objective

    def explain(self, batch=None, show: bool = True):
        """What `compile` decided, on one screen: see `keras_llm.explain`."""
        # Here, because teaching is built on models, and those on this.
        from keras_llm.explanation.explain import explain

        return explain(self, batch, show)

    def trace(self, batch, tokenizer=None, tokens: int = 12, show: bool = True):
        """One training step, slowly, and taken back: see `keras_llm.trace`."""
        from keras_llm.tracing.trace import trace

        return trace(self, batch, tokenizer, tokens, show)

    def flops_per_token(self, length: int) -> float | None:
        """Operations that training spends on a token, in a sequence of `length`, if known."""
        return None

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Keras's `fit`; with a loss of tokens its logs have what `TrainingLogs` adds.

        Warns, with a `SanityWarning`, of what is wrong with the first batch.
        """
        first_batch = FirstBatch(x, y, kwargs.get("sample_weight"))
        ours = [] if self.accounts is None else [*self.step_callbacks(), TrainingLogs()]
        if type(self).compute_loss is TokenStep.compute_loss:
            # Nobody knows what another one does with labels.
            ours.append(first_batch)
        callbacks = with_callbacks(ours, callbacks)
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        finally:
            first_batch.leave()

    def penalty(self):
        """What the layers add to the loss of every token: regularisation and `add_loss`."""
        return sum((ops.sum(loss) for loss in self.losses), 0.0)

    def call_ends_with_head(self):
        """Whether the predictions are what a layer named `head` returns."""
        return False

    def head_is_matrix(self):
        """Whether `head_matrix` is known."""
        return False

    def head_matrix(self):
        """The kernel `[d_model, vocab]` and bias (or None) that make the logits; None if unknown.

        With it, a loss and metrics of tokens need no logits.
        """
        return None

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics that `compute_loss` did not, and returns all results."""
        labels = y if self.accounts is None else self.loss.labels(y)
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    @property
    def metrics(self):
        """The logged loss first, then the metrics."""
        if self.accounts is None:
            return super().metrics
        return self.accounts.metrics + [m for m in super().metrics if m.name != "loss"]

    def get_compile_config(self):
        """What `compile` was called with, serialised."""
        with self.accumulation_given_back():
            config = super().get_compile_config()
        if self.accounts is not None:
            serialize = keras.saving.serialize_keras_object
            config["loss"] = serialize(self.loss)
            config |= {key: serialize(value) for key, value in self.accounts.arguments.items()}
            config["micro_batch_size"] = self.micro_batch_size
        return config

    def compile_from_config(self, config):
        """Compiles as `get_compile_config` says."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)


def with_callbacks(first, callbacks):
    """The callbacks of `fit`, with some before all others."""
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*first, *keras.tree.flatten(callbacks or [])]
    for callback in first:
        callback.set_params(callbacks.params)
        callback.set_model(callbacks.model)
    callbacks.callbacks[:0] = first
    return callbacks


def check_not_of_torch(**arguments):
    """Raises `TypeError` for what a PyTorch loop would use in place of an argument of `compile`."""
    for name, value in arguments.items():
        if type(value).__module__.startswith("torch."):
            raise TypeError(
                f"{name} must be one of keras_llm or Keras; README lists what PyTorch calls it and "
                f"what it is here. Received: {name}={type(value).__module__}.{type(value).__name__}"
            )


def resolve(metrics):
    """Our metrics in place of their names; anything else is left to Keras."""
    if not isinstance(metrics, list | tuple):
        return metrics
    return [keras.metrics.get(m) if is_ours(m) else m for m in metrics]


def is_ours(metric):
    """Whether `metric` is the name of one of our metrics."""
    known = known_names("metrics").get(metric) if isinstance(metric, str) else None
    return isinstance(known, type) and issubclass(known, TokenMetric)
