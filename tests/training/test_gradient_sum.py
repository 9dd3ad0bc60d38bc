"""Sums of gradients over processes, in one process: what is begun when, and of which gradients."""

import pytest
import torch

from keras_llm.training.torch import gradient_sum
from keras_llm.training.torch.gradient_sum import GradientSum

pytestmark = pytest.mark.torch_only


class Group:
    """Three processes with the same gradients; it notes how far the backward pass was."""

    rank, size = 0, 3

    def __init__(self):
        self.begun, self.passed = [], []

    def start_sum(self, flat, owner=None):
        self.begun.append((list(self.passed), flat.numel(), flat.dtype))
        summed = flat * 3

        def wait():
            flat.copy_(summed)

        return wait


def layers(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(4, 4, dtype=dtype, requires_grad=True) for _ in range(3)]


def loss_of(tensors, group=None):
    x = torch.ones(2, 4, dtype=tensors[0].dtype)
    for number, tensor in enumerate(tensors):
        x = torch.tanh(x @ tensor)
        if group is not None:
            # Reached by the backward pass before the gradient of this layer.
            x.register_hook(lambda _, number=number: group.passed.append(number))
    return x.sum()


def test_a_sum_begins_while_the_backward_pass_goes_on(monkeypatch):
    monkeypatch.setattr(gradient_sum, "BUCKET_BYTES", 1)
    tensors, group = layers(), Group()
    wanted = torch.autograd.grad(loss_of(tensors), tensors)
    summed = GradientSum(group, tensors)
    with summed.during(is_last=True):
        loss_of(tensors, group).backward()
    # The last layer's was on its way before the first layer was reached.
    assert [passed for passed, *_ in group.begun] == [[2], [2, 1], [2, 1, 0]]
    assert summed.finish() == [True, True, True]
    for tensor, gradient in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, 3 * gradient)
    assert not any(tensor._post_accumulate_grad_hooks for tensor in tensors)


def test_only_the_last_pass_of_an_update_is_sent():
    tensors, group = layers(), Group()
    summed = GradientSum(group, tensors)
    for is_last in (False, False, True):
        with summed.during(is_last):
            loss_of(tensors).backward()
    assert len(group.begun) == 1
    summed.finish()
    wanted = torch.autograd.grad(3 * loss_of(tensors), tensors)
    for tensor, gradient in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, 3 * gradient)


def test_a_process_without_rows_sends_zeros_in_the_same_order(monkeypatch):
    monkeypatch.setattr(gradient_sum, "BUCKET_BYTES", 1)
    tensors, group = layers(), Group()
    assert GradientSum(group, tensors).finish() == [False, False, False]
    assert [count for _, count, _ in group.begun] == [16, 16, 16]
    assert all(not tensor.grad.any() for tensor in tensors)


def test_an_unused_weight_holds_back_what_comes_after_it_only(monkeypatch):
    monkeypatch.setattr(gradient_sum, "BUCKET_BYTES", 1)
    tensors, group = layers(), Group()
    tensors.insert(2, torch.randn(4, 4, requires_grad=True))
    used = [tensors[i] for i in (0, 1, 3)]
    summed = GradientSum(group, tensors)
    with summed.during(is_last=True):
        loss_of(used, group).backward()
    assert len(group.begun) == 1
    assert summed.finish() == [True, True, False, True]
    assert len(group.begun) == 4


def test_bfloat16_is_summed_in_float32():
    tensors, group = layers(torch.bfloat16), Group()
    summed = GradientSum(group, tensors)
    with summed.during(is_last=True):
        loss_of(tensors).backward()
    summed.finish()
    assert {dtype for *_, dtype in group.begun} == {torch.float32}
    assert {tensor.grad.dtype for tensor in tensors} == {torch.bfloat16}
