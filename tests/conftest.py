"""One suite for three backends: `KERAS_BACKEND` says which; a few tests are about one of them."""

import collections
import contextlib
import gc
import multiprocessing
import os
import re

# What XLA makes here runs once or twice: it would be optimised longer than it runs. What users run
# is tested by the processes that PyTorch's suite starts, which compile as XLA does by default.
if (BACKEND := os.environ.get("KERAS_BACKEND")) in ("jax", "tensorflow"):
    XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if BACKEND == "jax":
        # Its older emitters compile JAX's many small programs in half the time.
        XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}"

import torch

# Triton's kernels run on a CPU too, step by step in Python; it decides that as it is loaded.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# It crashes if TensorFlow is loaded before it.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import keras_llm  # noqa: F401  isort: skip  (chooses the backend before Keras loads)
import keras
import pytest
from hypothesis import settings

MARKS_OF_ALL = re.compile(r"^pytestmark = .*(\n .*)*", re.MULTILINE)

# How long a test takes says nothing on a busy machine. Every run draws other examples.
settings.register_profile("suite", deadline=None, max_examples=40)
settings.load_profile("suite")


def pytest_configure(config):
    """Has JAX keep what it compiles, from test to test and from run to run.

    On PyTorch, workers are forked from a process that has imported what each of them would.
    """
    if keras.backend.backend() == "torch":
        multiprocessing.set_forkserver_preload(["keras_llm", "transformers"])
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_ignore_collect(collection_path, config):
    """Leaves out modules of which no test would run: what they import takes long."""
    if collection_path.suffix != ".py":
        return None
    text, marked = collection_path.read_text(), config.getoption("markexpr")
    found = MARKS_OF_ALL.search(text)
    of_all = found[0] if found else ""
    of_torch = re.search("torch_only|backend_free", of_all) and "every_backend" not in text
    left_out = (
        of_torch and keras.backend.backend() != "torch",
        marked == "not slow" and "mark.slow" in of_all,
        marked == "slow" and not re.search(r"mark\.(slow|quick\()", text),
    )
    return True if any(left_out) else None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(config, items):
    """Leaves out the tests of another backend, or of none, and samples."""
    backend = keras.backend.backend()
    mark_slow(items)
    markers = {
        "torch_only": backend == "torch",
        "backend_free": backend == "torch",
        "jax_only": backend == "jax",
        "not_torch": backend != "torch",
        "not_jax": backend != "jax",
        "not_tensorflow": backend != "tensorflow",
        "cuda_only": backend == "torch" and torch.cuda.is_available(),
    }

    def belongs(item):
        marked = {mark.name for mark in item.iter_markers()}
        if "every_backend" in marked:
            marked.discard("backend_free")
        return all(here for name, here in markers.items() if name in marked)

    kept = sampled([item for item in items if belongs(item)], backend)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def mark_slow(items):
    """Marks the cases that `quick` leaves to test-slow."""
    cases = collections.Counter()
    for item in items:
        every = next((mark.args[0] for mark in item.iter_markers("quick")), 1)
        test = item.nodeid.partition("[")[0]
        if cases[test] % every:
            item.add_marker(pytest.mark.slow)
        cases[test] += 1


def sampled(items, backend):
    """Those without the cases that `sampled` leaves to PyTorch and to the other backend."""
    kept, cases = set(), collections.Counter()
    for item in items:
        every = next((mark.args[0] for mark in item.iter_markers("sampled")), 1)
        test = item.nodeid.partition("[")[0]
        # TensorFlow's cases lie between those of JAX.
        first = {"jax": 0, "tensorflow": every // 2}.get(backend, 0)
        if backend == "torch" or cases[test] % every == first:
            kept.add(item)
        cases[test] += 1
    return kept


def pytest_collection_finish():
    """Has garbage collections walk what tests make, seldom, and never what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_unconfigure():
    """Lets the interpreter end as it does elsewhere."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    keras.utils.set_random_seed(0)
