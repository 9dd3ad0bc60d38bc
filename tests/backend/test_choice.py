"""Which backend `import keras_llm` chooses, each time in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]

SHOW = "import keras; print(keras.backend.backend())"


def python(code, tmp_path, keras_json=None, **environment):
    """What a fresh interpreter prints."""
    if keras_json is not None:
        (tmp_path / "keras.json").write_text(json.dumps(keras_json))
    env = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    env |= {"KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


def test_torch_is_the_default_whatever_keras_json_says_and_needs_no_tensorflow(tmp_path):
    hide = "import sys; sys.modules['tensorflow'] = None"
    got = python(f"{hide}\nimport keras_llm; {SHOW}", tmp_path, {"backend": "tensorflow"})
    assert got.stdout.strip() == "torch", got.stderr


def test_the_environment_decides(tmp_path):
    got = python(f"import keras_llm; {SHOW}", tmp_path, KERAS_BACKEND="jax")
    assert got.stdout.strip() == "jax", got.stderr


def test_a_loaded_keras_is_respected(tmp_path):
    code = f"import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras\nimport keras_llm; {SHOW}"
    assert python(code, tmp_path).stdout.strip() == "jax"


def test_a_missing_backend_says_what_to_install(tmp_path):
    hide = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "jax" else find(name, *rest)
"""
    got = python(f"{hide}\nimport keras_llm", tmp_path, KERAS_BACKEND="jax")
    last = got.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: KERAS_BACKEND is 'jax'")
    assert 'pip install "keras_llm[jax]"' in last
    got = python("import keras_llm", tmp_path, KERAS_BACKEND="mxnet")
    assert "KERAS_BACKEND must be one of ['jax', 'tensorflow', 'torch']" in got.stderr
