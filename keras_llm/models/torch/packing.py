"""Rows of several documents, told apart by positions that start again."""

import torch

from keras_llm.models.torch.modes import modes_kept

DOCUMENTS = 5, 7
TOLERANCE = 1e-4


class Packing:
    """Refuses packed rows for a model that would look from one document into another.

    Args:
        model: The transformers model.
    """

    def __init__(self, model):
        self.model = model
        self._is_exact = None

    def inputs(self, inputs: dict) -> dict:
        """The inputs as the model takes packed rows; other rows as they are.

        Raises:
            ValueError: rows are packed, and the model does not keep their documents apart, or a
                mask would keep it from doing so.
        """
        if self._is_exact and "attention_mask" not in inputs:
            return inputs
        if not begins_again(inputs.get("position_ids"), inputs.get("attention_mask")):
            return inputs
        if not self.is_exact():
            raise ValueError(
                f"Packed rows cannot be given to this {type(self.model).__name__}: where "
                "position_ids start again, it still looks at the document before. Use one document "
                "a row, data.instruction(..., packing=False)"
            )
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            raise ValueError(
                "Packed rows must have no attention_mask: with one, transformers does not look at "
                "position_ids. Padding at the end of a row is a document of its own, with labels "
                f"that are ignored. Received: a mask with {int((mask == 0).sum())} zeros"
            )
        return {name: value for name, value in inputs.items() if name != "attention_mask"}

    def is_exact(self) -> bool:
        """Whether a packed document gets the logits that it gets alone; found by trying."""
        if self._is_exact is None:
            with modes_kept(self.model):
                self.model.eval()
                self._is_exact = self.is_kept_apart()
        return self._is_exact

    @torch.no_grad()
    def is_kept_apart(self) -> bool:
        """Whether the second of two documents does not see the first."""
        table = self.model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        first, shape = min(3, len(table) - 1), (1, sum(DOCUMENTS))
        ids = torch.randint(first, len(table), shape, generator=generator)
        positions = torch.cat([torch.arange(length) for length in DOCUMENTS])[None]
        ids, positions = ids.to(table.device), positions.to(table.device)
        packed = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = self.model(input_ids=ids[:, DOCUMENTS[0] :], use_cache=False).logits
        eps = max(TOLERANCE, 4 * torch.finfo(alone.dtype).eps)
        return bool((packed[:, DOCUMENTS[0] :] - alone).abs().max() <= eps * alone.abs().max())


def begins_again(positions, mask) -> bool:
    """Whether position 0 follows another token of its row; what the mask leaves out is none.

    Args:
        positions: `[batch, length]`; None and positions in several axes are not packed.
        mask: `[batch, length]` or None; a mask of pairs of tokens says itself what sees what.
    """
    if positions is None or positions.ndim != 2 or (mask is not None and mask.ndim != 2):
        return False
    begins = positions[:, 1:] == 0
    if mask is not None:
        begins = begins & (mask[:, :-1] != 0) & (mask[:, 1:] != 0)
    return bool(begins.any())
