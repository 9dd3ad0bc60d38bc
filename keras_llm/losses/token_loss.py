"""A loss is one formula of three numbers per token."""

from abc import abstractmethod

from keras import ops

from keras_llm.backend.keras_private import keras_mask
from keras_llm.losses.masked_loss import MaskedLoss
from keras_llm.token_statistics import reduce_batch, token_statistics


class TokenLoss(MaskedLoss):
    """A loss that is a formula of three numbers per token, whatever the size of the vocabulary.

    With logits z and label t, a token's three numbers are

        nll = log(sum_j exp(z_j)) - z_t
        lse = log(sum_j exp(z_j))
        mean_logit = mean_j z_j

    Cross entropy, label smoothing, focal loss and z-loss are all functions of them. A loss of
    your own is one method; masking, weights, reductions, precision and saving come with it.

    Example:
    >>> import keras, keras_llm, numpy as np
    >>> @keras.saving.register_keras_serializable(package="my")
    ... class SquaredSurprise(keras_llm.losses.TokenLoss):
    ...     def token_loss(self, nll, lse, mean_logit):
    ...         return nll**2
    >>> loss = SquaredSurprise(ignore_index=0)
    >>> float(loss(np.array([1, 2, 0]), np.zeros((3, 4), "float32")))  # ln(4)**2
    1.92181...

    Args:
        ignore_index: Labels of this value do not count.
        from_logits: Whether predictions are logits; probabilities otherwise.
        reduction: `"mean"` (over the tokens that count), `"sum"` or `"none"`. What `fit` and
            `evaluate` of a `LanguageModel` log is per token, also with `"sum"`.
        name: The loss's name.
    """

    # One number for each class, handed to `token_loss` as the label's `class_weight`. A list is
    # copied to the device in every step; a tensor is there already.
    class_weights = None

    @abstractmethod
    def token_loss(self, nll, lse, mean_logit):
        """The loss of each token, from tensors of one number per token, in `keras.ops`.

        Args:
            nll: Negative log-likelihood of the label, in nats.
            lse: Log-sum-exp of the logits.
            mean_logit: Mean of the logits over the vocabulary.

        With `self.class_weights` set, the label's weight comes as a fourth argument,
        `class_weight`.
        """

    def per_token(self, y_true, y_pred, sample_weight=None):
        """The loss of each token and its weight, two tensors of the labels' shape."""
        batch = self.reduce(y_true, y_pred, sample_weight)
        return self.losses(batch), batch.weights

    def statistics(self, y_true, y_pred, sample_weight=None, top_k=0):
        """The `TokenStatistics` of a batch, and the `ReducedBatch` that they are the sums of."""
        batch = self.reduce(y_true, y_pred, sample_weight)
        return token_statistics(batch, self.losses(batch), top_k), batch

    def reduce(self, y_true, y_pred, sample_weight):
        """The batch reduced over the vocabulary, as this loss masks and weighs it."""
        return reduce_batch(
            y_true,
            y_pred,
            self.ignore_index,
            self.from_logits,
            sample_weight,
            keras_mask(y_pred),
            for_loss=True,
            signed=self.reduction == "sum",
        )

    def losses(self, batch):
        """The loss of each token of a `ReducedBatch`."""
        nll, lse, mean_logit, _ = batch.numbers
        return self.formula(nll, lse, mean_logit, batch.labels, batch.vocab_size)

    def formula(self, nll, lse, mean_logit, labels, vocab_size):
        """`token_loss`, with the labels' class weights if there are any."""
        if self.class_weights is None:
            return self.token_loss(nll, lse, mean_logit)
        if len(self.class_weights) != vocab_size:
            raise ValueError(
                f"Class weights need one number for each of the {vocab_size} classes. "
                f"Received: {len(self.class_weights)} numbers"
            )
        weights = ops.convert_to_tensor(self.class_weights, nll.dtype)
        return self.token_loss(nll, lse, mean_logit, ops.take(weights, labels, axis=0))
