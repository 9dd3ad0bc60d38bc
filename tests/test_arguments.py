import re

import numpy as np
import pytest

from keras_llm import arguments

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("value", [1, np.int64(7), np.uint8(200)])
def test_integers_become_python_ints(value):
    for check in (arguments.check_positive_int, arguments.check_non_negative_int):
        assert type(check(value, "n")) is int and check(value, "n") == value
    assert arguments.check_non_negative_int(0, "n") == 0


@pytest.mark.parametrize("value", [True, 2.0, "2", None, -1, np.float32(3), [1]])
def test_what_is_no_such_integer(value):
    for check in (arguments.check_positive_int, arguments.check_non_negative_int):
        with pytest.raises(ValueError, match=re.escape(f"Received: n={value!r}")):
            check(value, "n")
    with pytest.raises(ValueError, match=r"n must be a positive integer. Received: n=0"):
        arguments.check_positive_int(0, "n")


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.25)], [1, -1e-9, float("nan"), None, "0.5", True]),
        ("(0, 1]", [1e-9, 1], [0, 1.5, float("inf")]),
        ("(0, inf)", [1e-30, 1e30], [0, float("inf"), float("nan")]),
    ],
)
def test_intervals(interval, inside, outside):
    for value in inside:
        assert type(arguments.check_number(value, "x", interval)) is float
    for value in outside:
        message = re.escape(f"x must be a number in {interval}. Received: x={value!r}")
        with pytest.raises(ValueError, match=message):
            arguments.check_number(value, "x", interval)


def test_one_of():
    arguments.check_one_of("mean", "reduction", ("mean", "sum"))
    with pytest.raises(ValueError, match=r"must be one of \['mean', 'sum'\]. Received: r='min'"):
        arguments.check_one_of("min", "r", ("mean", "sum"))
    with pytest.raises(ValueError, match=re.escape("Received: r=['mean']")):
        arguments.check_one_of(["mean"], "r", {"mean": 1})
