import os

import pytest

from keras_llm.replaced_files import replaced_files

pytestmark = pytest.mark.backend_free


def test_new_files_come_at_the_end_and_together(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "mine").write_text("mine")
    with replaced_files(tmp_path) as new:
        (new / "a").write_text("new")
        (new / "inner").mkdir()
        (new / "inner" / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    files = {
        str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()
    }
    assert files == {"a": "new", "inner/b": "new", "mine": "mine"}
    assert sorted(os.listdir(tmp_path)) == ["a", "inner", "mine"]


def test_an_error_leaves_all_as_it_was(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replaced_files(tmp_path, obsolete=".*") as new:
        (new / "a").write_text("half of it")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    """As in the Hub's cache, where the files of a folder are links into another."""
    (tmp_path / "blob").write_text("shared")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").symlink_to(tmp_path / "blob")
    with replaced_files(tmp_path / "folder") as new:
        (new / "a").write_text("new")
    assert (tmp_path / "blob").read_text() == "shared"
    assert (tmp_path / "folder" / "a").read_text() == "new"


def test_obsolete_files_are_removed(tmp_path):
    for name in ("w-1", "w-2", "w-2.txt"):
        (tmp_path / name).write_text("old")
    with replaced_files(tmp_path, obsolete=r"w-\d") as new:
        (new / "w-1").write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["w-1", "w-2.txt"]


def test_a_new_folder_has_the_usual_rights(tmp_path):
    with replaced_files(tmp_path / "a" / "b") as new:
        (new / "file").write_text("")
    (tmp_path / "other").mkdir()
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "other").stat().st_mode
