"""`jit_compile="auto"`: a graph is compiled where that pays, and what it costs is bounded."""

import pytest
import torch

from keras_llm.training.torch import compile_policy
from keras_llm.training.torch.compile_policy import CALLS_BEFORE, CompilePolicy, GraphInUse

pytestmark = pytest.mark.torch_only

OPERATIONS, COMPILING = 100, 20.0


class Clock:
    """A clock that only graphs and compilers move."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    """It starts at 0; compiling takes `COMPILING` seconds, and makes a graph 0.7 of its time."""
    clock = Clock()
    clock.compiled, clock.ratio = [], 0.7
    monkeypatch.setattr(compile_policy, "time", clock)
    monkeypatch.setattr(compile_policy, "SECONDS_PER_OPERATION", 0.2)

    def compiled(module):
        clock.compiled.append(module)
        first = [True]

        def run(*arguments):
            if first:
                first.clear()
                clock.now += COMPILING
            return module(*arguments, ratio=clock.ratio)

        return run

    monkeypatch.setattr(compile_policy, "compiled", compiled)
    return clock


def graph(clock, seconds, training=True):
    """A graph that takes this long."""

    def module(weight, ids, ratio=1.0):
        clock.now += ratio * seconds
        return ids * weight + torch.rand(()) * 0, []

    module.graph = type("", (), {"nodes": range(OPERATIONS)})
    return GraphInUse(module, training)


WEIGHT, IDS = torch.ones(2, requires_grad=True), torch.ones(2)


def call(policy, graph, count=1):
    return [policy.call(graph, [WEIGHT, IDS]) for _ in range(count)]


@pytest.mark.parametrize("ratio", [0.7, 1.2])
@pytest.mark.parametrize("batches", [50, 500, 5_000, None])
@pytest.mark.parametrize("shapes", [1, 3, 40])
@pytest.mark.quick(5)
def test_no_run_takes_a_tenth_longer_whatever_its_shapes(clock, ratio, batches, shapes):
    clock.ratio = ratio
    policy, taken = CompilePolicy("auto"), batches or 4_000
    graphs = [graph(clock, 0.5) for _ in range(shapes)]
    policy.begin_epoch(batches)
    for number in range(taken):
        call(policy, graphs[number % shapes])
    assert clock.now <= 1.1 * 0.5 * taken
    # It is taken where it saves: a tenth of the time to come is more than compiling takes.
    pays = 0.1 * 0.5 * taken / shapes > 1.3 * COMPILING
    assert bool(clock.compiled) == pays
    if pays:
        assert len(clock.compiled) == (shapes if ratio < 1 else 1)
        assert (clock.now < 0.5 * taken) == (ratio < 1)


def test_a_long_run_is_compiled_at_once_and_a_loop_of_short_ones_when_it_has_lasted(clock):
    policy, one = CompilePolicy("auto"), graph(clock, 1.0)
    policy.begin_epoch(10_000)
    call(policy, one, CALLS_BEFORE + 2)
    assert clock.compiled
    policy, one = CompilePolicy("auto"), graph(clock, 1.0)
    clock.compiled.clear()
    fits = 0
    while not clock.compiled:
        fits += 1
        policy.begin_epoch(10)
        call(policy, one, 10)
        policy.pause()
        # Pauses between fits are nobody's time.
        clock.now += 1_000.0
    assert 310 <= 10 * fits <= 380


def test_a_shape_seldom_seen_is_never_compiled(clock):
    policy = CompilePolicy("auto")
    often, seldom, evaluation = (graph(clock, 0.5, training=t) for t in (True, True, False))
    policy.begin_epoch(5_000)
    for number in range(5_000):
        call(policy, often if number % 50 else seldom)
    call(policy, evaluation, 50)
    assert clock.compiled == [clock.compiled[0]]
    assert often.is_compiled and not seldom.is_compiled and not evaluation.is_compiled


def test_of_what_was_tried_nothing_is_left(clock):
    policy, one = CompilePolicy("auto"), graph(clock, 1.0)
    policy.begin_epoch(10_000)
    call(policy, one, CALLS_BEFORE)
    torch.manual_seed(0)
    call(policy, one, 2)
    assert one.is_compiled
    drawn = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(2)
    # No gradient, and dropout goes on as if it had not been.
    assert torch.equal(drawn, torch.rand(3))
    assert WEIGHT.grad is None


def test_without_a_compiler_the_graph_stays_and_says_why(clock, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compile_policy, "compiled", lambda module: fails)
    policy, one = CompilePolicy("auto"), graph(clock, 1.0)
    policy.begin_epoch(10_000)
    outputs = call(policy, one, 30)
    assert not one.is_compiled
    assert policy.describe() == "not compiled: torch.compile failed with RuntimeError: no compiler"
    assert all(torch.equal(hidden, torch.ones(2)) for hidden, _ in outputs)


def test_an_error_of_a_compiled_graph_says_who_wanted_it(clock, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compile_policy, "compiled", lambda module: fails)
    with pytest.raises(RuntimeError, match="no compiler") as raised:
        call(CompilePolicy(True), graph(clock, 1.0))
    (note,) = raised.value.__notes__
    assert note.startswith("compile was given jit_compile=True") and "C++ compiler" in note


def test_a_run_that_continues_where_no_compiler_is_goes_on_without(clock, monkeypatch):
    before, policy, one = CompilePolicy("auto"), CompilePolicy("auto"), graph(clock, 1.0)
    before.begin_epoch(10_000)
    call(before, graph(clock, 1.0), 20)
    policy.load_state_dict(before.state_dict())
    assert policy.ratio == pytest.approx(0.7)

    def fails(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compile_policy, "compiled", lambda module: fails)
    policy.begin_epoch(10_000)
    outputs = call(policy, one, 30)
    assert not one.is_compiled
    assert policy.describe() == "not compiled: torch.compile failed with RuntimeError: no compiler"
    assert all(torch.equal(hidden, torch.ones(2)) for hidden, _ in outputs)


def test_the_decision_is_kept_and_told(clock):
    policy = CompilePolicy("auto")
    assert policy.describe().startswith("not compiled so far")
    clock.ratio = 1.5
    policy.begin_epoch(10_000)
    call(policy, graph(clock, 1.0), 20)
    assert policy.describe() == "not compiled: compiled by torch.compile it takes 1.50 of the time"
    again = CompilePolicy("auto")
    again.load_state_dict(policy.state_dict())
    again.begin_epoch(10_000)
    call(again, graph(clock, 1.0), 20)
    assert len(clock.compiled) == 1
    assert again.describe() == policy.describe()
    assert CompilePolicy(False).describe() == ""


def test_true_compiles_at_once_and_false_never(clock):
    for jit_compile in (True, False):
        clock.compiled.clear()
        call(CompilePolicy(jit_compile), graph(clock, 1.0), 3)
        assert bool(clock.compiled) == jit_compile
