"""A program that is forked is one that was started: what it is given, and how it ends."""

import json
import time
from pathlib import Path

import pytest

from tests.distribution.processes import launch
from tests.programs import Program

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

TELL = """
import atexit, json, os, sys
import neighbour
seen = [sys.argv[1:], os.getcwd(), os.environ["WORD"], __name__, neighbour.WORD, sys.stdin.read()]
seen += [name in sys.modules for name in ("torch", "keras", "transformers", "keras_llm")]
atexit.register(lambda: print("the end"))
print(json.dumps(seen))
"""
ENDS = {
    "": 0,
    "sys.exit(3)": 3,
    "os.kill(os.getpid(), 9)": -9,
    "1 / 0": 1,
    "import tensorflow": 1,
}


def test_what_a_program_is_given(tmp_path):
    (tmp_path / "program.py").write_text(TELL)
    (tmp_path / "neighbour.py").write_text("WORD = 'beside it'")
    (tmp_path / "elsewhere").mkdir()
    program = Program(
        tmp_path / "program.py", "a b", 7, folder=tmp_path / "elsewhere", WORD="given"
    )
    assert program.wait() == 0, program.errors
    seen, end = program.printed.splitlines()
    folder = str(tmp_path / "elsewhere")
    given = [["a b", "7"], folder, "given", "__main__", "beside it", ""]
    assert json.loads(seen) == [*given, True, True, True, False]
    assert end == "the end" and program.errors == ""


@pytest.mark.parametrize("last", ENDS)
def test_how_a_program_ends(last, tmp_path):
    code = "import os, sys\nsys.excepthook = lambda kind, *_: print(kind.__name__)\n"
    (tmp_path / "program.py").write_text(code + last)
    program = Program(tmp_path / "program.py")
    assert program.wait() == ENDS[last]
    told = {"1 / 0": "ZeroDivisionError\n", "import tensorflow": "ModuleNotFoundError\n"}
    assert program.printed == told.get(last, "")


def test_a_program_that_does_not_end_is_killed_with_what_it_has_started(tmp_path):
    code = "import os, time\nprint(os.fork(), flush=True)\ntime.sleep(60)\n"
    (tmp_path / "program.py").write_text(code)
    program = Program(tmp_path / "program.py")
    while program.printed.count("\n") < 2:
        time.sleep(0.01)
    assert program.wait(seconds=0) == -9
    (child,) = (line for line in program.printed.split() if line != "0")
    state = Path(f"/proc/{child}/stat")
    for _ in range(1000):
        # Z: whoever has inherited it has not asked yet how it ended.
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.01)
    else:
        pytest.fail("its child lives on")


def test_one_that_fails_ends_the_others(tmp_path):
    code = "import os, time\nassert os.environ['RANK'] != '1', 'a bad rank'\ntime.sleep(60)\n"
    (tmp_path / "program.py").write_text(code)
    with pytest.raises(AssertionError, match="a bad rank"):
        launch(2, tmp_path / "program.py")
