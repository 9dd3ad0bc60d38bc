"""Lets tensorflow-datasets read and write files where TensorFlow is not installed."""

import contextlib
import importlib
import os
from types import SimpleNamespace


@contextlib.contextmanager
def without_tensorflow():
    """Context manager in which tensorflow-datasets uses Python's own functions for files.

    To unpack an archive and to sort examples it needs only `tf.io.gfile` and `tf.compat`, which it
    finds in a lazily imported module. This replaces that module. Everything else in it is still
    TensorFlow's, for data sets whose own code needs more. The lazy module is private: if a later
    version has none by that name, nothing is replaced.
    """
    try:
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as lazy
    except ImportError:
        yield
        return
    attributes = vars(lazy)
    before = dict(attributes)
    attributes["_module"] = _FilesOfTensorFlow()
    try:
        yield
    finally:
        del attributes["_module"]
        attributes.update(before)


class _FilesOfTensorFlow:
    def __init__(self):
        self.io = SimpleNamespace(
            gfile=SimpleNamespace(
                GFile=_open,
                exists=os.path.exists,
                isdir=os.path.isdir,
                listdir=os.listdir,
                remove=os.remove,
            )
        )
        self.compat = SimpleNamespace(as_text=os.fsdecode)

    def __getattr__(self, name):
        return getattr(importlib.import_module("tensorflow"), name)


def _open(path, mode="r"):
    return open(path, mode, encoding=None if "b" in mode else "utf-8")
