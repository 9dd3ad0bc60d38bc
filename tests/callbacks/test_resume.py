"""N steps are k steps, a kill at any instant, and the rest: equal to the last bit."""

import functools
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.data_loader import DataLoader
from tests.callbacks import resumable
from tests.callbacks.resumable import KillingPoint, checkpoint, differences, disturb, fit

BACKEND = keras.backend.backend()
SEED = 7
# How often each place is reached at least, in a run with a checkpoint every 4 steps.
TIMES = {
    "step": 10, "batch": 33, "next_batch": 30, "write": 25, "marker": 8,
    "epoch_end": 3, "validation": 3, "epoch": 3,
}  # fmt: skip


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
    # The program itself seeds as before, or not at all: it must not matter.
    return fit(name, 999, [checkpoint(name, folder)])


def points(count, seed):
    """Random points: a place, and how often it was reached before."""
    draw = random.Random(seed)
    places = [KillingPoint.PLACES[i % len(KillingPoint.PLACES)] for i in range(count)]
    return [(place, draw.randrange(TIMES[place])) for place in places]


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


@pytest.mark.torch_only
def test_what_is_left_out_is_noticed(tmp_path, monkeypatch):
    """The comparison sees the random state alone."""
    assert simulate("accumulation", tmp_path, "next_batch", 17)
    monkeypatch.setattr(
        "keras_llm.callbacks.training_checkpoint.set_random_states", lambda state: None
    )
    found = [
        key
        for key, _ in differences(uninterrupted("accumulation"), resumed("accumulation", tmp_path))
    ]
    assert {"weights", "sums", "random"} <= set(found) and "read" not in found


@pytest.mark.slow
@pytest.mark.torch_only
@pytest.mark.filterwarnings("ignore::keras_llm.callbacks.CheckpointWarning")
@pytest.mark.parametrize("name", [name for name in resumable.RUNS if name != "workers"])
def test_processes_that_are_killed(name, tmp_path):
    """`kill -9` at five random points of each kind of run, each in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.callbacks.resumable"])
    whole = uninterrupted(name)
    number = list(resumable.RUNS).index(name)
    for turn, (where, times) in enumerate(points(40, 3)[number * 5 : number * 5 + 5]):
        folder = tmp_path / str(turn)
        process = context.Process(target=resumable.killed, args=(name, folder, where, times, SEED))
        process.start()
        process.join(120)
        assert process.exitcode in (-9, 0), (where, times)
        assert differences(whole, resumed(name, folder)) == [], (where, times)


PROGRAM = "import sys; from tests.callbacks import resumable; resumable.killed(*eval(sys.argv[1]))"


@pytest.mark.slow
@pytest.mark.torch_only
@pytest.mark.filterwarnings("ignore::keras_llm.callbacks.CheckpointWarning")
def test_a_process_with_workers_is_killed(tmp_path):
    arguments = ("workers", str(tmp_path / "run"), "batch", 17, SEED)
    # Not by pipes: the loader's workers live on and hold them.
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, repr(arguments)],
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert process.wait(120) == -9, (tmp_path / "log").read_text()
        finally:
            os.killpg(process.pid, 9)
    whole, part = uninterrupted("workers"), resumed("workers", tmp_path / "run")
    assert differences(whole, part) == []
    assert len(part["sums"]) < len(whole["sums"])
    # So many workers as there are, the run is the same.
    resumable.RUNS["none"] = {}
    assert differences(uninterrupted("none"), whole) == []


@pytest.mark.not_torch
@pytest.mark.filterwarnings("ignore::keras_llm.callbacks.CheckpointWarning")
@pytest.mark.parametrize(
    ("name", "where", "number"),
    [("accumulation", "next_batch", 17), ("accumulation", "epoch", 1)],
)
def test_other_backends_go_on_too(name, where, number, tmp_path):
    assert simulate(name, tmp_path, where, number)
    assert differences(uninterrupted(name), resumed(name, tmp_path)) == []
