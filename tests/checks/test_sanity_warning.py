"""A warning comes each time, and points to the line of the user."""

import importlib.util
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_llm.checks import sanity_warning
from keras_llm.training import SanityWarning
from tests.checks.setups import FULL, LENGTH, causal, compiled, small

X, Y = FULL[:, :LENGTH], np.zeros((len(FULL), LENGTH), int)


def shown(action, *filters, **options):
    """The sanity warnings that Python shows of a call, by default or with one more filter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        if filters:
            warnings.filterwarnings(*filters, **options)
        action()
    return [warning for warning in caught if warning.category is SanityWarning]


def line_of(text):
    lines = Path(__file__).read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if text in line and "line_of" not in line)


def test_each_fit_tells_at_the_users_line():
    model = compiled(small())

    def two_fits():
        for _ in range(2):
            model.fit(X, Y, verbose=0)  # this line

    first, second = shown(two_fits)
    assert str(first.message) == str(second.message)
    for warning in first, second:
        assert (warning.filename, warning.lineno) == (__file__, line_of("# this line"))


@pytest.mark.backend_free
def test_each_compile_tells_at_the_users_line():
    loss = keras.losses.SparseCategoricalCrossentropy()
    model = causal()

    def two_compiles():
        for _ in range(2):
            model.compile("adam", loss)  # that line

    first, second = shown(two_compiles)
    for warning in first, second:
        assert (warning.filename, warning.lineno) == (__file__, line_of("# that line"))


@pytest.mark.backend_free
def test_the_users_file_may_lie_beside_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(sanity_warning, "LIBRARIES", (f"{tmp_path}/keras_llm/",))
    for folder in ("keras_llm", "keras_llm_runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "keras_llm" / "ours.py").write_text("def call(function):\n    function()\n")
    (tmp_path / "keras_llm_runs" / "run.py").write_text(
        "import ours\nfrom keras_llm.checks import sanity_warning\n"
        "ours.call(lambda: sanity_warning.warn('a'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "keras_llm")
    path = tmp_path / "keras_llm_runs" / "run.py"
    spec = importlib.util.spec_from_file_location("run", path)
    try:
        run = importlib.util.module_from_spec(spec)
        [warning] = shown(lambda: spec.loader.exec_module(run))
    finally:
        sys.modules.pop("ours", None)
    assert (warning.filename, warning.lineno) == (str(path), 3)


@pytest.mark.backend_free
def test_filters_of_python_silence_it_or_raise_it():
    model = compiled(small())

    def fit():
        model.fit(X, Y, verbose=0)

    assert not shown(fit, "ignore", category=SanityWarning)
    assert not shown(fit, "ignore", module=__name__)
    with pytest.raises(SanityWarning, match="No label of the first batch counts"):
        shown(fit, "error", category=SanityWarning)
    # The model is not left half-way.
    assert len(shown(fit)) == 1


@pytest.mark.backend_free
def test_what_compile_has_told_fit_does_not_tell_again():
    def compile_and_fit():
        model = causal()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(), run_eagerly=True)
        for _ in range(2):
            model.fit(X, FULL[:, 1:-1], verbose=0)

    [warning] = shown(compile_and_fit)
    assert str(warning.message).startswith("The model returns logits, but the loss expects proba")
