import http.server
import importlib
import json
import random
import socket
import textwrap
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_llm import data
from tests.data.tiny_pairs import SENTENCES, TinyPairs
from tests.programs import Program

pytestmark = pytest.mark.backend_free

load_module = importlib.import_module("keras_llm.data.load")


class Reviews(tfds.core.GeneratorBasedBuilder):
    """Two texts, one inside another feature, a number and no (input, target)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "title": tfds.features.Text(),
            "stars": tfds.features.Scalar(np.int64),
            "data": {"body": tfds.features.Text()},
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"title": "Büyük", "stars": 5, "data": {"body": "Great."}}


class Undirected(TinyPairs):
    """Does not say which language is the input."""

    def _info(self):
        features = tfds.features.Translation(("tr", "en"))
        return tfds.core.DatasetInfo(builder=self, features=features)


@pytest.fixture(scope="module")
def reviews(data_dir):
    data.load(Reviews(data_dir=data_dir), text="title")
    return "reviews"


def test_splits_of_a_translation_set(tiny_pairs):
    assert {name: len(split) for name, split in tiny_pairs.items()} == {
        "train": 50,
        "validation": 10,
        "test": 10,
    }
    assert tiny_pairs["train"].fields == ("tr", "en")
    assert sorted(tiny_pairs["train"]) == sorted(SENTENCES[:50])
    assert sorted(tiny_pairs["test"]) == sorted(SENTENCES[60:])


def test_rows_slices_and_fields(tiny_pairs):
    split = tiny_pairs["validation"]
    rows = list(split)
    assert [split[i] for i in range(10)] == rows
    assert split[-1] == rows[-1]
    assert split[2:5] == rows[2:5]
    assert list(split["en"]) == [english for _, english in rows]
    with pytest.raises(IndexError):
        split[10]
    with pytest.raises(KeyError, match=r"no field 'de'.*'tr', 'en'"):
        split["de"]


def test_preparing_takes_no_global_random_number(tmp_path):
    """A script with a seed has the same numbers the first time and later."""
    states = random.getstate(), np.random.get_state()
    data.load(Reviews(data_dir=tmp_path), text="title")
    assert random.getstate() == states[0]
    np.testing.assert_equal(np.random.get_state(), states[1])


def test_by_name_from_disk(tiny_pairs, data_dir):
    assert list(data.load("tiny_pairs", data_dir=data_dir)["test"]) == list(tiny_pairs["test"])
    backwards = data.load("tiny_pairs", text=("en", "tr"), data_dir=data_dir)["test"]
    assert list(backwards) == [(english, turkish) for turkish, english in tiny_pairs["test"]]


def test_unknown_split_lists_the_splits(tiny_pairs):
    with pytest.raises(KeyError, match=r"no split 'dev'.*'train', 'validation', 'test'"):
        tiny_pairs["dev"]


def test_text_fields_are_named_where_they_are_ambiguous(reviews, data_dir):
    with pytest.raises(ValueError, match=r"which fields.*\['title', 'data/body'\]"):
        data.load(reviews, data_dir=data_dir)
    with pytest.raises(ValueError, match=r"text fields.*'stars'"):
        data.load(reviews, text="stars", data_dir=data_dir)
    assert data.load(reviews, text="title", data_dir=data_dir)["train"][0] == "Büyük"
    both = data.load(reviews, text=("title", "data/body"), data_dir=data_dir)
    assert both["train"][0] == ("Büyük", "Great.")


def test_languages_without_a_direction_are_in_alphabetical_order(data_dir):
    assert data.load(Undirected(data_dir=data_dir))["train"].fields == ("en", "tr")


def test_wrong_names():
    with pytest.raises(ValueError, match=r"'cmudct'.*Did you mean: cmudict"):
        data.load("cmudct")
    with pytest.raises(TypeError, match=r"name must be a string"):
        data.load(3)
    with pytest.raises(ValueError, match=r"data_dir belongs to a builder"):
        data.load(TinyPairs(data_dir="a"), data_dir="b")


def test_without_network_a_missing_set_fails_at_once(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(load_module, "reachable", asked.append)
    start = time.monotonic()
    with pytest.raises(ConnectionError) as error:
        data.load("ted_hrlr_translate/tr_to_en", data_dir=tmp_path)
    assert time.monotonic() - start < 30
    assert "ted_hrlr_translate/tr_to_en" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert len(asked) == 1 and asked[0].startswith("http")


def test_another_file_format_is_refused(tmp_path):
    builder = TinyPairs(data_dir=tmp_path)
    data.load(builder)
    info = builder.data_path / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"must be stored as array_record.*tfrecord"):
        data.load("tiny_pairs", data_dir=tmp_path)


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the address ends in."""

    def do_GET(self):
        self.send_response(int(self.path.rsplit("/", 1)[-1]))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_reachable(server, monkeypatch):
    assert load_module.reachable(f"{server}/200")
    assert load_module.reachable(f"{server}/404")
    assert not load_module.reachable(f"{server}/403")
    assert not load_module.reachable("http://nowhere.invalid/200")
    monkeypatch.setenv("http_proxy", server)
    assert load_module.reachable("http://nowhere.invalid/200")


def test_a_silent_server_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(load_module, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not load_module.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert time.monotonic() - start < 5


WITHOUT_TENSORFLOW = """
    import http.server, importlib.util, io, os, sys, tarfile, threading

    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: (
        None if name.split(".")[0] == "tensorflow" else find_spec(name, *rest)
    )

    class NoTensorFlow:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "tensorflow":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, NoTensorFlow())
    os.environ.update(KERAS_BACKEND="torch", no_proxy="*")
    from keras_llm import data

    assert "tensorflow_datasets" not in sys.modules, "which takes longer to import than the rest"
    data_dir = sys.argv[1]
    corpus = data.load("tiny_pairs", data_dir=data_dir)
    assert len(corpus["train"]) == 50, corpus
    assert corpus["train"].fields == ("tr", "en"), corpus

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("folder/text.txt")
        member.size = len("çay".encode())
        tar.addfile(member, io.BytesIO("çay".encode()))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(archive.getvalue())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    import tensorflow_datasets as tfds

    class Downloaded(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            url = f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
            return {"train": self._generate_examples(dl_manager.download_and_extract(url))}

        def _generate_examples(self, path):
            yield 0, {"text": (path / "folder" / "text.txt").read_text()}

    assert list(data.load(Downloaded(data_dir=data_dir))["train"]) == ["çay"]
    assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_without_tensorflow(tiny_pairs, data_dir, tmp_path):
    """A prepared set is read, and another downloaded, unpacked and prepared."""
    (tmp_path / "program.py").write_text(textwrap.dedent(WITHOUT_TENSORFLOW))
    program = Program(tmp_path / "program.py", data_dir)
    assert program.wait() == 0, program.errors
