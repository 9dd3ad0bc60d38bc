"""The gradients of all processes, summed while the backward pass goes on."""

import contextlib

import torch

# Bytes that are sent at once: many small operations would wait for one another.
BUCKET_BYTES = 25 * 2**20


class GradientSum:
    """Sums `.grad` over the processes of a group, once an update, in buckets.

    A backward pass makes the gradients of the last layers first. So buckets are of variables in
    reverse order, and the sum of a bucket begins as soon as the last of its gradients is there,
    while the pass goes on. All processes begin the sums in the same order, though one may have no
    rows and another no gradient of some variable.

    Gradients of less than float32 are summed in float32. Where variables have owners, a sum goes to
    the owner, and other processes have no gradient afterwards.

    Args:
        group: The `ProcessGroup`.
        tensors: The tensors of the trainable variables.
        owners: The process that owns each of them; None where all processes get the sums.
    """

    def __init__(self, group, tensors, owners=None):
        self.group, self.tensors = group, tensors
        self.buckets = buckets_of(tensors, owners or [None] * len(tensors))
        self.bucket_of = {id(t): i for i, (_, bucket) in enumerate(self.buckets) for t in bucket}
        self.forget()

    def forget(self):
        """Begins a new update."""
        self.missing = [len(bucket) for _, bucket in self.buckets]
        # Of each bucket whose sum has begun: the flat tensor, and what waits for it.
        self.begun = []
        self.known = set()

    @contextlib.contextmanager
    def during(self, is_last: bool):
        """Context manager for a backward pass.

        Args:
            is_last: Whether it is the last one of this update.
        """
        hooks = []
        if is_last:
            self.forget()
            hooks = [t.register_post_accumulate_grad_hook(self.is_there) for t in self.tensors]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def is_there(self, tensor):
        """Begins the sums whose turn it is, now that a gradient is complete."""
        self.missing[self.bucket_of[id(tensor)]] -= 1
        while len(self.begun) < len(self.buckets) and not self.missing[len(self.begun)]:
            self.begin_next()

    @torch.no_grad()
    def begin_next(self):
        """Begins the sum of the next bucket; a gradient that this process does not have is 0."""
        owner, bucket = self.buckets[len(self.begun)]
        parts = []
        for tensor in bucket:
            gradient, tensor.grad = tensor.grad, None
            if gradient is None:
                gradient = torch.zeros_like(tensor)
            else:
                self.known.add(id(tensor))
            parts.append(gradient.reshape(-1).to(summed_dtype(tensor)))
        flat = torch.cat(parts)
        self.begun.append((flat, self.group.start_sum(flat, owner)))

    @torch.no_grad()
    def finish(self) -> list[bool]:
        """Puts the sums into `.grad`.

        Returns:
            For each tensor, whether this process had a gradient of it.
        """
        while len(self.begun) < len(self.buckets):
            self.begin_next()
        for (owner, bucket), (flat, wait) in zip(self.buckets, self.begun, strict=True):
            wait()
            if owner not in (None, self.group.rank):
                continue
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.grad = part.view_as(tensor).to(tensor.dtype)
        known = [id(tensor) in self.known for tensor in self.tensors]
        self.forget()
        return known


def bytes_sent(tensors, processes: int) -> int:
    """The bytes that a process sends for the sum of the gradients of an update, by theory.

    In a ring each process sends a part of 1/N of the gradients N - 1 times to be summed, and N - 1
    times where it is summed.

    Args:
        tensors: The tensors of the trainable variables.
        processes: N.
    """
    gradients = sum(t.numel() * summed_dtype(t).itemsize for t in tensors)
    return 2 * (processes - 1) * gradients // processes


def summed_dtype(tensor):
    """What the gradients of a tensor are summed in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def buckets_of(tensors, owners) -> list[tuple]:
    """The tensors in reverse order, cut into lists of one owner and dtype, of about as many bytes.

    Returns:
        Owners, each with such a list, by the place of the list's last tensor.
    """
    filled, begun = [], {}
    for tensor, owner in zip(reversed(tensors), reversed(owners), strict=True):
        kind = owner, tensor.dtype, tensor.device
        # Taken out and put in again: what ends last is last.
        bucket = [*begun.pop(kind, []), tensor]
        if sum(t.numel() * t.element_size() for t in bucket) < BUCKET_BYTES:
            begun[kind] = bucket
        else:
            filled.append((owner, bucket))
    return [*filled, *((owner, bucket) for (owner, *_), bucket in begun.items())]
