"""N steps are k steps, a kill at any instant, and the rest: equal to the last bit."""

import ast
import functools
import itertools
import os
import random
import signal
from pathlib import Path

import keras
import pytest

from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.data_loader import DataLoader
from tests.callbacks import resumable
from tests.callbacks.resumable import KillingPoint, checkpoint, differences, disturb, fit
from tests.programs import Program

SEED = 7
# How often each place is reached at least.
TIMES = {
    "step": 10, "batch": 33, "next_batch": 30, "write": 14, "marker": 2,
    "epoch_end": 3, "validation": 3, "epoch": 3,
}  # fmt: skip
WITHOUT_WORKERS = [name for name in resumable.RUNS if name != "workers"]


class Killed(BaseException):
    """The end of a process, in this one."""


def kill():
    raise Killed


@functools.cache
def uninterrupted(name):
    return fit(name, SEED, [])


def simulate(name, folder, where, number):
    """Trains until the point is reached; says whether it was."""

    try:
        with KillingPoint(where, number, kill) as point:
            fit(name, SEED, [point, checkpoint(name, folder)])
    except Killed:
        return True
    return False


def resumed(name, folder):
    disturb(999)
    # Another seed must not matter, unless the kill came before there was a checkpoint.
    seed = 999 if any(Path(folder).glob("step_*/complete")) else SEED
    return fit(name, seed, [checkpoint(name, folder)])


SHORT = [
    ("accumulation", "step", 3),
    ("arrays", "epoch", 1),
    ("micro_batches", "next_batch", 17),
    ("accumulation", "validation", 1),
    ("loss_of_keras", "batch", 9),
]


@pytest.mark.filterwarnings("ignore::keras_llm.callbacks.CheckpointWarning")
@pytest.mark.torch_only
@pytest.mark.parametrize(("name", "where", "number"), SHORT)
@pytest.mark.quick(5)
def test_a_run_goes_on_as_if_nothing_had_happened(name, where, number, tmp_path):
    assert simulate(name, tmp_path, where, number)
    assert differences(uninterrupted(name), resumed(name, tmp_path)) == []


@pytest.mark.torch_only
def test_data_that_was_read_before_goes_on_in_its_own_epoch(tmp_path):
    """Two fits in one program, the second with a checkpoint."""

    def program(*extra):
        keras.utils.set_random_seed(SEED)
        order = BatchOrder(resumable.ROWS, resumable.BATCH, shuffle=True, seed=5)
        loader = DataLoader(resumable.Rows(), order)
        for _ in loader:
            pass
        model, trace = resumable.compiled({}), resumable.Trace()
        model.fit(loader, epochs=2, verbose=0, callbacks=[*extra, trace])
        return trace.read

    whole = program()
    with pytest.raises(Killed), KillingPoint("batch", 14, kill) as point:
        program(point, checkpoint("micro_batches", tmp_path))
    again = program(checkpoint("micro_batches", tmp_path))
    assert again == {step: ids for step, ids in whole.items() if step >= min(again)}
    assert 0 < len(again) < len(whole)


@pytest.mark.slow
@pytest.mark.torch_only
def test_what_is_left_out_is_noticed(tmp_path, monkeypatch):
    """The comparison sees the random state alone."""
    assert simulate("accumulation", tmp_path, "next_batch", 17)
    monkeypatch.setattr("keras_llm.callbacks.continuation.set_random_states", lambda state: None)
    found = [
        key
        for key, _ in differences(uninterrupted("accumulation"), resumed("accumulation", tmp_path))
    ]
    assert {"weights", "sums", "random"} <= set(found) and "read" not in found


def program_of(call, folder):
    """A program that calls a function of `resumable`, when it has ended."""
    # Workers import the program too.
    code = f"from tests.callbacks import resumable\nif __name__ == '__main__':\n    {call}\n"
    (folder / "program.py").write_text(code)
    program = Program(folder / "program.py")
    program.wait(900)
    return program


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    """Four runs of each kind, killed at random points: the folder and the point of each."""
    draw, folder = random.Random(3), tmp_path_factory.mktemp("killed")
    places = itertools.cycle(KillingPoint.PLACES)
    found = {}
    for name in WITHOUT_WORKERS:
        found[name] = [
            (str(folder / f"{name}_{where}"), where, draw.randrange(TIMES[where]))
            for where in itertools.islice(places, 4)
        ]
        # Another kind begins with another place.
        next(places)
    jobs = [(name, *point, SEED) for name, some in found.items() for point in some]
    program = program_of(f"print(resumable.kill_each({jobs!r}))", folder)
    assert program.code == 0, program.errors
    endings = ast.literal_eval(program.printed.splitlines()[-1])
    assert endings == [-9] * 32, list(zip(jobs, endings, strict=True))
    return found


@pytest.mark.slow
@pytest.mark.torch_only
@pytest.mark.filterwarnings("ignore::keras_llm.callbacks.CheckpointWarning")
@pytest.mark.parametrize("name", WITHOUT_WORKERS)
def test_processes_that_are_killed(name, killed_runs):
    """`kill -9` at 32 random points, four for each kind of run."""
    for folder, *point in killed_runs[name]:
        assert differences(uninterrupted(name), resumed(name, folder)) == [], point


@pytest.mark.slow
@pytest.mark.torch_only
def test_a_process_with_workers_is_killed(tmp_path):
    arguments = ("workers", str(tmp_path / "run"), "batch", 17, SEED)
    program = program_of(f"resumable.killed(*{arguments!r})", tmp_path)
    assert program.code == -9, program.errors
    whole, part = uninterrupted("workers"), resumed("workers", tmp_path / "run")
    assert differences(whole, part) == []
    assert len(part["sums"]) < len(whole["sums"])


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_a_run_that_a_signal_has_ended_goes_on(number, error, tmp_path):
    """The state is written after the step in which the signal came, on every backend."""
    with pytest.raises(error):
        point = KillingPoint("next_batch", 17, lambda: os.kill(os.getpid(), number))
        fit("accumulation", SEED, [point, checkpoint("accumulation", tmp_path)])
    again = resumed("accumulation", tmp_path)
    assert differences(uninterrupted("accumulation"), again) == []


@pytest.mark.not_torch
@pytest.mark.filterwarnings("ignore::keras_llm.callbacks.CheckpointWarning")
@pytest.mark.parametrize(
    ("name", "where", "number"),
    [("accumulation", "next_batch", 17), ("accumulation", "epoch", 1)],
)
@pytest.mark.sampled(2)
def test_other_backends_go_on_too(name, where, number, tmp_path):
    assert simulate(name, tmp_path, where, number)
    assert differences(uninterrupted(name), resumed(name, tmp_path)) == []
