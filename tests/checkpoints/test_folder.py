"""A folder of checkpoints, its files damaged in every way."""

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from keras_llm.checkpoints import CheckpointFolder, DamagedCheckpointError, FolderInUseError, files
from keras_llm.checkpoints.background import BackgroundWriter
from keras_llm.checkpoints.state_tree import pack

pytestmark = pytest.mark.backend_free

FILES = ["state.json", "tensors.safetensors", "manifest.json", "complete"]


def state_at(steps):
    return {"steps": steps, "weights": np.arange(50.0) + steps, "empty": np.zeros(0)}


def write(folder, steps, epoch=0, **options):
    folder.write(folder.name(steps, epoch), *pack(state_at(steps)), **options)


def steps_of(folder):
    """The checkpoints of a folder by their steps, the newest first."""
    return [int(name.split("_")[1]) for name in folder.names()]


def newest_steps(path):
    """The steps of what a process finds that has nothing to do with the one that wrote."""
    found = CheckpointFolder(path, 2).newest()
    if found.state is None:
        return None, found.bad
    np.testing.assert_equal(found.state, state_at(found.state["steps"]))
    return found.state["steps"], found.bad


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints 10 and 20."""
    made = CheckpointFolder(tmp_path / "run", keep=2)
    write(made, 10)
    write(made, 20)
    yield made
    made.close()


def test_the_newest_is_found_and_old_ones_go(folder):
    write(folder, 100)
    assert newest_steps(folder.path) == (100, [])
    assert steps_of(folder) == [100, 20]
    assert sorted(os.listdir(folder.path / folder.names()[0])) == sorted(FILES)


def test_the_same_step_after_an_epoch_is_newer(folder):
    write(folder, 20, epoch=1)
    assert folder.names()[0] == folder.name(20, 1)


def test_what_is_to_be_kept_stays(folder):
    write(folder, 30, keep=[folder.name(10, 0)])
    assert steps_of(folder) == [30, 20, 10]


def truncated(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def longer(path):
    path.write_bytes(path.read_bytes() + b" ")


def missing(path):
    path.unlink()


def linked(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGES = [truncated, flipped, emptied, longer, missing, linked]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=[f.__name__ for f in DAMAGES])
def test_a_damaged_file_is_named_and_the_one_before_is_used(folder, name, damage):
    path = folder.path / folder.names()[0]
    damage(path / name)
    steps, [bad] = newest_steps(folder.path)
    assert steps == 10
    assert str(path) in bad
    assert name in bad or (name == "complete" and "not written to its end" in bad)


def test_a_damaged_one_is_deleted_after_a_new_one_is_whole(folder):
    flipped(folder.path / folder.names()[0] / "tensors.safetensors")
    again = CheckpointFolder(folder.path, keep=1)
    folder.close()
    assert again.newest().state["steps"] == 10
    assert steps_of(again) == [20, 10], "reading deletes nothing"
    write(again, 15)
    assert steps_of(again) == [15]
    again.close()


def test_where_all_are_damaged_nothing_begins_anew(folder):
    for name in folder.names():
        flipped(folder.path / name / "state.json")
    with pytest.raises(DamagedCheckpointError, match=r"No checkpoint can be read.*state\.json has"):
        CheckpointFolder(folder.path, 2).newest()


def test_a_half_written_first_one_is_no_reason_to_stop(tmp_path):
    folder = CheckpointFolder(tmp_path / "run", 2)
    write(folder, 1)
    missing(folder.path / folder.names()[0] / "complete")
    steps, [bad] = newest_steps(folder.path)
    assert steps is None and "was not written to its end" in bad
    write(folder, 1)
    assert newest_steps(folder.path) == (1, [])
    folder.close()


class Killed(BaseException):
    """What ends a process, for a test in one process."""


def calls_of_a_write(folder):
    """Every call of the system in one write, as a name and how many of it came before."""
    seen = []

    def note(name, number):
        seen.append((name, number))

    with watched(note):
        write(folder, 30)
    return seen


class watched:
    """Context manager: `act(name, number)` before each call that a write makes of the system."""

    NAMES = ("fsync", "rename", "mkdir", "unlink", "rmdir", "open")

    def __init__(self, act):
        self.act, self.counts = act, dict.fromkeys(self.NAMES, 0)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in self.NAMES:
            self.patch.setattr(os, name, self.before(name, getattr(os, name)))
        real = open

        def opened(path, mode="r", *args, **options):
            if set("wxa") & set(mode):
                self.tell("open")
            return real(path, mode, *args, **options)

        self.patch.setattr("builtins.open", opened)

    def before(self, name, function):
        def call(*args, **options):
            self.tell(name)
            return function(*args, **options)

        return call

    def tell(self, name):
        number = self.counts[name]
        self.counts[name] += 1
        self.act(name, number)

    def __exit__(self, *error):
        self.patch.undo()


def test_killed_before_any_call_of_the_system(tmp_path):
    """Between rename and marker too; with `keep=1` the one before must outlive the new one."""
    first = CheckpointFolder(tmp_path / "0", 1)
    write(first, 20)
    calls = calls_of_a_write(first)
    first.close()
    assert len(calls) > 12
    found = set()
    for turn, kill_at in enumerate(calls, start=1):
        folder = CheckpointFolder(tmp_path / str(turn), 1)
        write(folder, 20)

        gone = []

        def kill(name, number, kill_at=kill_at, gone=gone):
            # A process that is gone cleans nothing up.
            if gone or (name, number) == kill_at:
                gone.append(name)
                raise Killed

        with pytest.raises(Killed), watched(kill):
            write(folder, 30)
        folder.close()
        steps, _ = newest_steps(folder.path)
        found.add(steps)
        assert steps in (20, 30)
        again = CheckpointFolder(folder.path, 1)
        again.newest()
        write(again, 40)
        assert steps_of(again) == [40] and os.listdir(again.path).count("lock") == 1
        assert not [n for n in os.listdir(again.path) if n.startswith(".writing")]
        again.close()
    assert found == {20, 30}


@pytest.mark.parametrize("number", range(5))
def test_a_full_disk_leaves_the_last_good_one(folder, number):
    def full(name, count):
        if name == "fsync" and count >= number:
            raise OSError(errno.ENOSPC, "No space left on device")

    with watched(full), pytest.raises(OSError, match="No space left"):
        write(folder, 30)
    assert newest_steps(folder.path)[0] == 20
    assert steps_of(folder)[-2:] == [20, 10], "nothing was deleted"
    write(folder, 40)
    assert newest_steps(folder.path) == (40, []) and steps_of(folder) == [40, 20]


def test_a_folder_that_is_gone_is_made_again(folder):
    import shutil

    shutil.rmtree(folder.path)
    write(folder, 30)
    assert newest_steps(folder.path) == (30, [])
    with pytest.raises(FolderInUseError):
        CheckpointFolder(folder.path, 2).open()


def test_the_clock_decides_nothing(folder):
    for name in folder.names():
        for file in (folder.path / name).iterdir():
            os.utime(file, (1, 1))
    write(folder, 30)
    os.utime(folder.path / folder.names()[0], (0, 0))
    assert newest_steps(folder.path) == (30, []) and steps_of(folder) == [30, 20]


def test_other_things_in_the_folder_stay(folder, tmp_path):
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "step_1").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "complete").write_text("mine")
    (folder.path / "step_000000099_epoch_0000").symlink_to(outside)
    write(folder, 30)
    assert newest_steps(folder.path) == (30, [])
    assert (folder.path / "notes.txt").read_text() == "mine"
    assert (outside / "complete").read_text() == "mine"


def test_a_second_one_is_refused_and_told_who_has_it(folder):
    other = CheckpointFolder(folder.path, 2)
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"):
        other.open()
    with pytest.raises(FolderInUseError):
        write(other, 30)
    folder.close()
    other.open()
    other.close()


@pytest.mark.slow
def test_the_lock_ends_with_its_process_also_where_it_has_forked(folder):
    folder.close()
    code = (
        "import os, sys, time\n"
        "from keras_llm.folder_lock import FolderLock\n"
        "from pathlib import Path\n"
        "lock = FolderLock(Path(sys.argv[1]) / 'lock', 'its checkpoints')\n"
        "lock.acquire()\n"
        "if os.fork() == 0: time.sleep(60)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(FolderInUseError, match=f"process {process.pid} on"):
            folder.open()
        process.kill()
        process.wait()
        folder.open()
    finally:
        os.killpg(process.pid, 9)
        process.stdout.close()


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, cut off, doubled, or, of a text, a number or a name exchanged."""
    data = bytearray(content)
    kind = draw.randrange(5)
    at = draw.randrange(len(data)) if data else 0
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        return bytes(data[:at] + data[at : at + 9] + data[at:])
    if kind == 2:
        return bytes(data[:at] + data[at + draw.randrange(1, 20) :])
    if kind == 3:
        return bytes(data).replace(b"state.json", b"../../etc/passwd").replace(b"1", b"-1")
    for _ in range(draw.randrange(1, 4)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


@pytest.mark.slow
def test_2000_mutated_files_are_found_or_named(folder):
    draw, path = random.Random(0), folder.path / folder.names()[0]
    whole = {name: (path / name).read_bytes() for name in FILES}
    changed = 0
    for _ in range(2000):
        name = draw.choice(FILES)
        content = mutated(whole[name], draw)
        (path / name).write_bytes(content)
        steps, bad = newest_steps(folder.path)
        assert (steps, len(bad)) == ((20, 0) if content == whole[name] else (10, 1)), (name, bad)
        changed += content != whole[name]
        (path / name).write_bytes(whole[name])
    assert changed > 1800


@pytest.mark.slow
def test_500_mutated_files_with_right_checksums_are_read_or_named(folder, monkeypatch):
    """As somebody would make them who wants to do harm."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    draw, path = random.Random(1), folder.path / folder.names()[0]
    whole = {name: (path / name).read_bytes() for name in FILES[:2]}
    for _ in range(500):
        for name in whole:
            (path / name).write_bytes(mutated(whole[name], draw))
        seal(path)
        try:
            files.read_checkpoint(path)
        except DamagedCheckpointError as error:
            assert str(error)


def seal(path):
    """Makes the checksums those of the files."""
    listed = {}
    for name in FILES[:2]:
        (path / f"{name}.copy").unlink(missing_ok=True)
        content = (path / name).read_bytes()
        listed[name] = dict(
            zip(("bytes", "sha256"), files.write_bytes(path / f"{name}.copy", content), strict=True)
        )
    for name in FILES[2:]:
        (path / name).unlink()
    manifest = json.dumps({"format": files.FORMAT, "files": listed}).encode()
    _, sha = files.write_bytes(path / "manifest.json", manifest)
    files.write_bytes(path / "complete", sha.encode())


def test_a_deep_text_and_another_format_are_named(folder):
    path = folder.path / folder.names()[0]
    (path / "state.json").write_bytes(b"[" * 100_000)
    seal(path)
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        files.read_checkpoint(path)
    (path / "manifest.json").write_text('{"format": 2}')
    sha = files.hashlib.sha256(b'{"format": 2}').hexdigest()
    (path / "complete").write_text(sha)
    with pytest.raises(DamagedCheckpointError, match="format is 2, not 1"):
        files.read_checkpoint(path)


def test_one_writer_at_a_time():
    writer, running, most = BackgroundWriter(), [], []

    def work():
        running.append(threading.current_thread())
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    for _ in range(5):
        writer.start(work)
    assert writer.is_busy()
    writer.wait()
    assert most == [1] * 5 and not writer.is_busy() and writer.take_error() is None


def test_an_error_of_the_writer_is_kept_until_somebody_asks():
    writer = BackgroundWriter()
    writer.start(os.stat, "/nowhere/at/all")
    writer.wait()
    assert isinstance(writer.take_error(), FileNotFoundError)
    assert writer.take_error() is None
