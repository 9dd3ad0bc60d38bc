"""How a transformers model reads its `labels`: found by comparing with its own loss."""

import torch
import torch.nn.functional as F

IGNORED = -100
TOLERANCE = 1e-4


def shifted_left(labels, ignore_index: int = IGNORED):
    """The label of each position where `labels` are the inputs: the next token; none at the end."""
    last = torch.full_like(labels[:, :1], ignore_index)
    return torch.cat([labels[:, 1:], last], dim=1)


@torch.no_grad()
def shifts_labels(model, inputs: dict, labels, penalty) -> bool | None:
    """Whether a model compares its logits with the next label, not with the same position's.

    Args:
        model: The transformers model, in evaluation mode.
        inputs, labels: A few rows of tokens.
        penalty: From its outputs to what its loss adds to the cross entropy.

    Returns:
        None where its loss is neither.
    """
    try:
        outputs = model(**inputs, labels=labels, use_cache=False)
    except TypeError:
        return None
    if outputs.loss is None:
        return None
    own = outputs.loss - penalty(outputs)
    # Some models return the logits of the positions that have a label.
    logits = model(**inputs, use_cache=False).logits.float()
    for shifts in (True, False):
        y = shifted_left(labels) if shifts else labels
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED)
        if (own - loss).abs() <= TOLERANCE * loss:
            return shifts
    return None


def shifted_right(labels, start_id: int, pad_id: int):
    """A decoder's inputs: a start, then the labels but the last; padding where they are ignored."""
    start = torch.full_like(labels[:, :1], start_id)
    ids = torch.cat([start, labels[:, :-1]], dim=1)
    return ids.masked_fill(ids == IGNORED, pad_id)


class DecoderInputs:
    """From labels to what the decoder reads, as the model itself does it.

    Args:
        model: A transformers encoder-decoder, in evaluation mode.
        inputs, labels: A few rows of tokens to try it with.
    """

    def __init__(self, model, inputs: dict, labels):
        self.name = type(model).__name__
        self.start_id, self.pad_id = ids_of(model.config)
        wanted = model(**inputs, labels=labels, use_cache=False).logits
        own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        for way in filter(None, (self.shifted, own)):
            self.way = way
            given = {**inputs, "decoder_input_ids": self(labels)}
            if torch.equal(model(**given, use_cache=False).logits, wanted):
                return
        self.way = None

    def shifted(self, labels):
        """As T5 and Bart have them."""
        return shifted_right(labels, self.start_id, self.pad_id)

    def __call__(self, labels):
        """The decoder's ids, `[batch, length]`.

        Raises:
            ValueError: the model's own way is not known.
        """
        if self.way is None:
            raise ValueError(
                f"A batch of {self.name} must have 'decoder_input_ids': how it makes them of the "
                "labels is not known"
            )
        # A row without a label has no last one, which some models look for.
        empty = (labels == IGNORED).all(dim=1, keepdim=True)
        first = torch.arange(labels.shape[1], device=labels.device) == 0
        return self.way(labels=labels.masked_fill(empty & first, self.pad_id + 1))


def ids_of(config) -> tuple[int, int]:
    """What a decoder starts with, and what stands for no token."""
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    known = [v for name in names if (v := getattr(config, name, None)) is not None]
    pad_id = getattr(config, "pad_token_id", None)
    start_id = known[0] if known else 0
    return start_id, start_id if pad_id is None else pad_id
