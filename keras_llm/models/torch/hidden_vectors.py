"""The hidden vectors that a transformers model gives to its head, and what it adds to its loss."""

import torch

from keras_llm.models.torch.logits_rule import replaced

TOLERANCE = 1e-6


class HiddenVectors:
    """A transformers model up to its head.

    Args:
        model: The transformers model, in evaluation mode.
        head: Its output embeddings.
        inputs: A few tokens to try it with.
        is_scale: Whether nothing but a factor lies between the head's product and the logits.

    Attributes:
        by_base_model: Whether `base_model` ends where the head begins. Where it does not, the whole
            model runs with a head that passes on what it is given.
        scales: Whether the factor is in the hidden vectors.
        reason: Why neither gives what the head is given; empty where one does.
    """

    def __init__(self, model, head, inputs: dict, is_scale: bool):
        self.model, self.head = model, head
        self.by_base_model, self.scales, self.reason = True, False, ""
        given = {}
        with torch.no_grad():
            hook = head.register_forward_pre_hook(lambda _, args: given.update(hidden=args[0]))
            try:
                logits = model(**inputs, use_cache=False).logits
            finally:
                hook.remove()
            if "hidden" not in given:
                self.reason = "the model makes logits without calling its output embeddings"
                return
            if not self.has_router_loss() and self.gives(given["hidden"], inputs):
                return
            self.by_base_model, self.scales = False, True
            hidden = self(inputs)[0] if is_scale else None
            if hidden is None or not close(head(hidden), logits):
                self.reason = "what the head is given comes neither from base_model nor unchanged"

    def gives(self, wanted, inputs) -> bool:
        """Whether `base_model` gives these hidden vectors."""
        base = self.model.base_model
        return base is not self.model and close(self(inputs)[0], wanted)

    def has_router_loss(self) -> bool:
        """Whether the configuration asks for the loss of a mixture of experts' router."""
        return bool(getattr(self.model.config, "output_router_logits", False))

    def __call__(self, inputs: dict, in_use=lambda module: module):
        """The hidden vectors, and the penalty of `penalty_of`.

        Args:
            inputs: What the model is given.
            in_use: From a module to what is called, such as what `torch.compile` made of it.
        """
        if self.by_base_model:
            outputs = in_use(self.model.base_model)(**inputs, use_cache=False)
            return outputs.last_hidden_state, 0.0
        with replaced(self.head, lambda hidden: hidden):
            outputs = in_use(self.model)(**inputs, use_cache=False)
        return outputs.logits, self.penalty_of(outputs)

    def penalty_of(self, outputs):
        """What the model's own loss adds to the cross entropy: its routers' loss."""
        loss = getattr(outputs, "aux_loss", None)
        if loss is None:
            return 0.0
        model = self.model
        coefficient = getattr(model, "router_aux_loss_coef", None)
        if coefficient is None:
            coefficient = getattr(model.config, "router_aux_loss_coef", 0.0)
        return coefficient * loss


def close(a, b) -> bool:
    """Whether two results are the same but for rounding."""
    if a.shape != b.shape:
        return False
    largest = b.abs().max().float()
    eps = max(TOLERANCE, 2 * torch.finfo(b.dtype).eps)
    return bool((a - b).abs().max().float() <= eps * largest)
