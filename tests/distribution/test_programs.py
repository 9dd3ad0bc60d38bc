"""Programs of README and examples, by two processes: the numbers of one, without dropout."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.distribution import programs
from tests.distribution.processes import environment, launch

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The histories of one process, and of each of two; and the files that they have left."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    path = {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, programs.__file__, str(alone)],
        env=environment(**path), check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    launch(2, programs.__file__, together, timeout=900, **path)
    names = [alone / "found.0", together / "found.0", together / "found.1"]
    files = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (alone, together)
    ]
    return [json.loads(name.read_text()) for name in names], files


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_the_numbers_are_those_of_one_process(found, name):
    (alone, *together), _ = found
    assert len(alone[name]) > 0
    for every in together:
        for mine, theirs in zip(alone[name], every[name], strict=True):
            assert set(mine) == set(theirs)
            for key, values in mine.items():
                np.testing.assert_allclose(theirs[key], values, rtol=1e-5, err_msg=key)


def test_the_files_are_those_of_one_process(found):
    _, (alone, together) = found
    assert together - {Path("found.1")} == alone
