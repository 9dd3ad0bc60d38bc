"""A disk that is really full: a tmpfs of one megabyte, where a user may mount one."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import small_disk

pytestmark = [pytest.mark.slow, pytest.mark.torch_only]

MOUNTED = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'


def on_small_disk(directory, *command):
    """Runs a command that finds a disk of one megabyte at `directory`."""
    command = ["unshare", "-rm", "sh", "-c", MOUNTED, str(directory), *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def run(tmp_path):
    """Runs a part of `small_disk`; returns what it printed."""
    if shutil.which("unshare") is None or on_small_disk(tmp_path, "true").returncode:
        pytest.skip("a tmpfs can be mounted by root only here")

    def run(part):
        command = [sys.executable, "-m", small_disk.__name__, part, str(tmp_path)]
        done = on_small_disk(tmp_path, *command)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_checkpoints_on_a_disk_that_is_full(run):
    """Training goes on, the last good checkpoint stays, and later ones are written again."""
    found = run("checkpoints")
    assert 1 <= len(found["warnings"]) <= 6
    for text in found["warnings"]:
        assert os.strerror(errno.ENOSPC) in text
        assert "The last good one in" in text
        assert text.endswith("step_000000002_epoch_0000.")
    assert found["as without"]
    assert found["continued"]
    assert found["left"] == ["lock", "step_000000040_epoch_0002"]


def test_tokens_on_a_disk_that_is_full(run):
    """The error is the system's; with room, the same call ends what it began."""
    found = run("tokens")
    assert found["errors"] == [errno.ENOSPC, errno.ENOSPC]
    assert found["equal"]
