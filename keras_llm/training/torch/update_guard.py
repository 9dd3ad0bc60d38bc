"""Which updates are skipped on PyTorch, decided where the tensors are: no GPU is waited for."""

from collections import deque

import torch

from keras_llm.backend.torch import tensors as facts
from keras_llm.training.gradient_outliers import UNKNOWN, is_outlier, remembered
from keras_llm.training.step_facts import GuardSettings, SkippedUpdates

# The most updates between two looks of which is known whether they were skipped.
MAX_UPDATES = 1024


class UpdateGuard:
    """Keeps what is not finite out of the epoch's sums and the weights, and counts it.

    On a CPU, whose values are at hand, decisions are Python booleans and counts Python integers; on
    a GPU they are scalar tensors.
    """

    def __init__(self):
        self.settings = GuardSettings()
        self.total = self.in_a_row = self.outliers = 0
        # Whether the loss of a batch of this window was not finite.
        self.lost = False
        # Of the latest updates.
        self.norms = None
        # The number of batches, and of each update since the last look this number and whether it
        # was skipped; on a CPU of those alone that were.
        self.batches, self.updates = 0, deque(maxlen=MAX_UPDATES)
        # The epoch's sums, what layers assign to, both before this batch; and whether the sums
        # are NaN because nothing else is left of the epoch.
        self.sums, self.state, self.before, self.spoiled = [], [], [], False

    def begin_fit(self):
        """Begins a new window and a new row."""
        self.lost, self.in_a_row = False, 0
        self.updates.clear()

    @torch.no_grad()
    def begin_batch(self, sums, state):
        """Keeps what a batch may spoil.

        Args:
            sums: The epoch's sums; the first are those of the logged loss and of its tokens.
            state: What layers assign to in a forward pass.
        """
        self.batches += 1
        self.sums, self.state = sums, state
        if self.spoiled is not False:
            for tensor in sums:
                tensor.nan_to_num_(0.0, 0.0, 0.0)
            self.spoiled = False
        self.before = [tensor.clone() for tensor in (*sums, *state)]

    @torch.no_grad()
    def end_batch(self) -> bool:
        """Takes back what a batch with a loss that is not finite has added.

        Where nothing is left, the sums become NaN until the next batch: a loss of 0 would be wrong.

        Returns:
            Whether the host knows that it did.
        """
        bad = on_host(self.sums[0].sum().isfinite().logical_not())
        if bad is False:
            return False
        self.lost = self.lost | bad
        is_empty = self.before[0][1] == 0
        kept = [
            t.masked_fill(is_empty, torch.nan) if t.is_floating_point() else t
            for t in self.before[: len(self.sums)]
        ]
        kept += self.before[len(self.sums) :]
        for tensor, good in zip((*self.sums, *self.state), kept, strict=True):
            tensor.copy_(good if bad is True else torch.where(bad, good, tensor))
        self.spoiled = bad
        return bad is True

    @torch.no_grad()
    def decide(self, norm, overflows: bool):
        """Whether an update is skipped: a boolean where the host knows it, else a tensor.

        Args:
            norm: The global norm of its gradients; None where there are none.
            overflows: Whether a norm that is not finite is the loss scale's, which skips by itself.
        """
        bad, self.lost = self.lost, False
        if not self.settings.skip:
            return False
        if norm is not None and not overflows:
            bad = bad | on_host(norm.isfinite().logical_not())
        outlier = self.is_outlier(norm)
        self.total = self.total + bad
        self.in_a_row = (self.in_a_row + bad) * bad
        if outlier is not False:
            self.outliers = self.outliers + outlier
        skip = bad | outlier
        if skip is not False:
            self.updates.append((self.batches, skip))
        return skip

    def is_outlier(self, norm):
        """Whether a norm is far larger than the latest ones, which it joins."""
        deviations, window = self.settings.deviations, self.settings.window
        if deviations is None or norm is None:
            return False
        if self.norms is None or len(self.norms) != window:
            self.norms = torch.full((window,), UNKNOWN, device=norm.device)
        outlier = on_host(norm.isfinite() & is_outlier(norm, self.norms, deviations))
        self.norms = remembered(norm, self.norms)
        return outlier

    def look(self, wait: bool) -> SkippedUpdates | None:
        """What was skipped; None where the host would have to wait and must not."""
        flags = [flag for _, flag in self.updates]
        counts = self.total, self.in_a_row, self.outliers
        if not wait and any(isinstance(value, torch.Tensor) for value in (*flags, *counts)):
            return None
        if flags and isinstance(flags[-1], torch.Tensor):
            flags = torch.stack(flags).tolist()
        pairs = zip(self.updates, flags, strict=True)
        ages = [self.batches - batch for (batch, _), flag in pairs if flag]
        self.updates.clear()
        return SkippedUpdates(ages, *map(int, counts))

    def state_dict(self) -> dict:
        """The counts, the window so far, the latest norms."""
        norms = None if self.norms is None else self.norms.clone()
        counts = [int(n) for n in (self.total, self.in_a_row, self.outliers)]
        spoiled = bool(self.spoiled)
        return {"counts": counts, "lost": bool(self.lost), "spoiled": spoiled, "norms": norms}

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` returned."""
        self.total, self.in_a_row, self.outliers = state["counts"]
        self.lost, self.spoiled, self.norms = (state[k] for k in ("lost", "spoiled", "norms"))


def on_host(condition):
    """A scalar tensor as a Python boolean where its value is at hand."""
    return bool(condition) if facts.is_on_host(condition) else condition
