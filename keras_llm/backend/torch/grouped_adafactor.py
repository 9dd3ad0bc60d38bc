"""Adafactor's update of all variables with PyTorch's operations on lists of tensors."""

from typing import NamedTuple

import torch

from keras_llm.backend.torch.batched_update import BatchedUpdate, working_copy, write_back


class AdafactorSlot(NamedTuple):
    """The tensors of one variable's update; `position` is the index of its gradient.

    A vector has no columns; its second moment is in `rows`.
    """

    position: int
    value: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor | None
    momentum: torch.Tensor | None
    decays: bool

    @property
    def kind(self):
        """Equal for all slots of a batch."""
        return self.columns is not None, self.rows.dtype, self.decays


class GroupedAdafactor(BatchedUpdate):
    """Adafactor's update, by the equations of `keras_llm.optimizers.Adafactor`."""

    @torch.no_grad()
    def __call__(
        self,
        gradients: list[torch.Tensor],
        step: torch.Tensor,
        learning_rate: torch.Tensor,
        weight_decay: float,
        scale_parameter: bool,
        beta_1: float | None,
        beta_2_decay: float,
        epsilon_1: float,
        epsilon_2: float,
        clip_threshold: float,
        skip: torch.Tensor | None = None,
    ):
        """Updates values and state in place. Scalars stay tensors: no host-device synchronisation.

        Args:
            gradients: One for each slot.
            step: The number of this update, from 1: a float32 scalar on the variables' device.
            learning_rate: rho, a scalar on the variables' device.
            weight_decay: The weight decay of the slots that decay.
            scale_parameter: As in `Adafactor`, like the following.
            beta_1: Decay rate of the momentums; None if the slots have none.
            beta_2_decay: beta_2 = 1 - step^beta_2_decay.
            epsilon_1: Added to the squared gradients.
            epsilon_2: The least root mean square of a variable.
            clip_threshold: The greatest root mean square of an update.
            skip: A boolean scalar on the variables' device: whether nothing is to change.
        """
        if skip is not None:
            learning_rate = learning_rate.masked_fill(skip, 0.0)
        for batch in self.batches:
            factored, dtype, decays = batch[0].kind
            copies = [working_copy(slot.value, dtype) for slot in batch]
            batch_gradients = [gradients[slot.position].to(dtype) for slot in batch]
            weight = step.to(dtype) ** beta_2_decay
            if skip is not None:
                weight = weight.masked_fill(skip, 0.0)
            normalized = factored_updates if factored else vector_updates
            updates = normalized(batch, batch_gradients, weight, epsilon_1, skip)

            alphas = learning_rate.to(dtype).expand(len(batch))
            if scale_parameter:
                alphas = alphas * root_mean_squares(copies).clamp(min=epsilon_2)
            scales = alphas / (root_mean_squares(updates) / clip_threshold).clamp(min=1.0)
            torch._foreach_mul_(updates, scales.unbind())
            if beta_1 is not None:
                momentums = [slot.momentum for slot in batch]
                if skip is not None:
                    # The mean of a momentum and itself.
                    pairs = zip(momentums, updates, strict=True)
                    updates = [torch.where(skip, old, new) for old, new in pairs]
                torch._foreach_lerp_(momentums, updates, 1 - beta_1)
                updates = momentums
            if skip is not None:
                updates = [update.masked_fill(skip, 0.0) for update in updates]
            if decays and weight_decay:
                torch._foreach_mul_(copies, (1 - alphas * weight_decay).unbind())
            torch._foreach_sub_(copies, updates)
            write_back(batch, copies)


def factored_updates(batch, gradients, weight, epsilon_1, skip):
    """Updates the means of rows and columns; returns G / sqrt(R C / mean(R))."""
    rows, columns = [slot.rows for slot in batch], [slot.columns for slot in batch]
    squares = torch._foreach_mul(gradients, gradients)
    means = [square.mean(dim=-1) for square in squares]
    means += [square.mean(dim=-2) for square in squares]
    move_averages(rows + columns, means, weight, epsilon_1, skip)

    row_shares = torch._foreach_div(rows, [row.mean(dim=-1, keepdim=True) for row in rows])
    torch._foreach_clamp_min_(row_shares, torch.finfo(torch.float32).tiny)
    torch._foreach_rsqrt_(row_shares)
    column_roots = torch._foreach_rsqrt(columns)
    # The squares are no longer needed: the updates reuse their memory.
    for update, gradient, row_root, column_root in zip(
        squares, gradients, row_shares, column_roots, strict=True
    ):
        torch.mul(gradient, row_root.unsqueeze(-1), out=update)
        update.mul_(column_root.unsqueeze(-2))
    return squares


def vector_updates(batch, gradients, weight, epsilon_1, skip):
    """Updates the mean squares V; returns G / sqrt(V)."""
    rows = [slot.rows for slot in batch]
    move_averages(rows, torch._foreach_mul(gradients, gradients), weight, epsilon_1, skip)
    updates = torch._foreach_rsqrt(rows)
    torch._foreach_mul_(updates, gradients)
    return updates


def move_averages(averages, squares, weight, epsilon_1, skip):
    """averages <- (1 - weight) * averages + weight * (squares + epsilon_1); overwrites squares.

    Where `skip` is true, the weight is 0, and squares count as 0: they may be infinite.
    """
    torch._foreach_add_(squares, epsilon_1)
    torch._foreach_mul_(squares, weight)
    if skip is not None:
        squares = [square.masked_fill(skip, 0.0) for square in squares]
    torch._foreach_mul_(averages, 1 - weight)
    torch._foreach_add_(averages, squares)


def root_mean_squares(tensors):
    """The root mean square of each tensor, as one vector."""
    norms = torch._foreach_norm(tensors)
    torch._foreach_div_(norms, [tensor.numel() ** 0.5 for tensor in tensors])
    return torch.stack(norms)
