"""Lets tensorflow-datasets read and write files without TensorFlow, to which it leaves that."""

import contextlib
import importlib
import os
from types import SimpleNamespace


@contextlib.contextmanager
def without_tensorflow():
    """While this is open, tensorflow-datasets reads and writes files with Python's own functions.

    It asks `tf.io.gfile` for files and `tf.compat` for text, and nothing else of TensorFlow, to
    unpack an archive and to sort examples; a set whose own code asks for more still gets TensorFlow
    if that is installed. What it asks is a lazy module, private to it: where a later version
    has none by that name, TensorFlow is asked as before.
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
