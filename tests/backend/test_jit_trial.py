"""`jit_compile="auto"`: a graph is compiled where that turns out to be faster, and only there."""

import pytest
import torch
from keras_llm.backend.torch.jit_trial import JitTrial

from keras_llm.backend.torch import jit_trial

pytestmark = pytest.mark.torch_only


class Clock:
    """A clock that only graphs move."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(jit_trial, "time", clock)
    return clock


def graph(clock, seconds):
    """A graph that takes this long, and counts its calls."""

    def module(weight, ids):
        module.calls += 1
        clock.now += seconds
        return ids * weight + torch.rand(()) * 0, []

    module.calls = 0
    return module


def calls(trial, count):
    weight, ids = torch.ones(2, requires_grad=True), torch.ones(2)
    return [trial(weight, ids) for _ in range(count)], weight


@pytest.mark.parametrize(("seconds", "is_kept"), [(1.0, True), (9.0, False)])
def test_the_faster_one_is_kept_after_a_minute(clock, monkeypatch, seconds, is_kept):
    slow, other = graph(clock, 5.0), graph(clock, seconds)
    monkeypatch.setattr(jit_trial, "compiled", lambda module: other)
    trial = JitTrial(slow)
    calls(trial, 13)
    assert other.calls == 0
    torch.manual_seed(0)
    _, weight = calls(trial, 1)
    drawn = torch.rand(3)
    assert other.calls > 0
    assert trial.module is (other if is_kept else slow)
    # Of what was tried nothing is left: no gradient, and dropout goes on as if it had not been.
    assert weight.grad is None
    torch.manual_seed(0)
    torch.rand(())
    assert torch.equal(drawn, torch.rand(3))
    before = other.calls, slow.calls
    calls(trial, 3)
    assert sum((other.calls, slow.calls)) == sum(before) + 3


def test_a_short_run_is_left_alone(clock, monkeypatch):
    monkeypatch.setattr(jit_trial, "compiled", lambda module: pytest.fail("compiled"))
    calls(JitTrial(graph(clock, 0.001)), 1000)
    calls(JitTrial(graph(clock, 30.0)), jit_trial.CALLS_BEFORE)


def test_without_a_compiler_the_graph_stays(clock, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(jit_trial, "compiled", lambda module: fails)
    slow = graph(clock, 5.0)
    trial = JitTrial(slow)
    outputs, _ = calls(trial, 20)
    assert trial.module is slow
    assert all(torch.equal(hidden, torch.ones(2)) for hidden, _ in outputs)


def test_evaluation_is_measured_without_a_backward_pass(clock, monkeypatch):
    other = graph(clock, 1.0)
    monkeypatch.setattr(jit_trial, "compiled", lambda module: other)
    trial = JitTrial(graph(clock, 5.0))
    with torch.no_grad():
        calls(trial, 20)
    assert trial.module is other
