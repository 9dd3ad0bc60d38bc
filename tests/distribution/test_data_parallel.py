"""Several processes train as one does: gloo, two and four of them, against a process alone."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.distribution import trained
from tests.distribution.processes import launch, torchrun

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]


# Of four processes one has no rows of a batch of three; the last batch of documents has one row.
NAMES = {1: ["documents"], 2: list(trained.RUNS), 4: ["documents", "accumulation", "by_hand"]}


@functools.cache
def results(size):
    """The results of each process."""
    out = Path(tempfile.mkdtemp(), "out")
    # Four by what takes less time to start them.
    by = launch if size == 4 else torchrun
    by(size, Path(trained.__file__), str(out), *NAMES[size])
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(size)]


@functools.cache
def alone():
    out = Path(tempfile.mkdtemp(), "out")
    launch(1, Path(trained.__file__), str(out))
    return json.loads(Path(f"{out}.0").read_text())


@pytest.mark.parametrize(
    ("size", "name"), [(size, name) for size in (2, 4) for name in NAMES[size]]
)
def test_the_numbers_are_those_of_one_process(size, name):
    every = [each[name] for each in results(size)]
    # All processes know the same.
    assert all(each == every[0] for each in every)
    compare(every[0], alone()[name], name)


def compare(found, wanted, where):
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for key in wanted:
            compare(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        if wanted and isinstance(wanted[0], dict):
            for i, pair in enumerate(zip(found, wanted, strict=True)):
                compare(*pair, f"{where}[{i}]")
        else:
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6, err_msg=where)
    else:
        np.testing.assert_allclose(found, wanted, rtol=2e-6, err_msg=where)


def test_one_process_under_torchrun_is_a_process_alone():
    assert results(1)[0]["documents"] == alone()["documents"]
