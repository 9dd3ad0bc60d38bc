"""Token losses of every setting, each with its formula over whole rows."""

import pytest
import torch

from keras_llm import losses
from tests import reference
from tests.losses.token_losses import CROSSENTROPY, FOCAL


class Own(losses.TokenLoss):
    """A temperature-squared focal variant that no paper knows."""

    def token_loss(self, nll, lse, mean_logit):
        return (1 - torch.exp(-nll)) ** 1.5 * nll**2 + 0.1 * (lse - mean_logit) ** 2


def own(logits, labels):
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    spread = logits.logsumexp(-1) - logits.mean(-1)
    return (1 - torch.exp(-nll)) ** 1.5 * nll**2 + 0.1 * spread**2


def cases():
    """Pairs of our loss and the reference's per-token formula."""
    yield pytest.param(Own(), own, id="own")
    for options in CROSSENTROPY + FOCAL:
        if options.get("reduction", "mean") != "mean":
            continue
        arguments = {k: v for k, v in options.items() if k != "reduction"}
        theirs = {k: v for k, v in arguments.items() if k != "label_smoothing"}
        theirs["smoothing"] = arguments["label_smoothing"]
        if "gamma" in options:
            ours = losses.MaskedSparseCategoricalFocalCrossentropy(**arguments)
            formula = reference.focal
        else:
            ours = losses.MaskedSparseCategoricalCrossentropy(**arguments)
            formula = reference.crossentropy
        yield pytest.param(
            ours, lambda z, t, f=formula, o=theirs: f(z, t, **o), id=str(options)[:90]
        )
