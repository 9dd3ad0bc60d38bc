"""`benchmarks/gpu.py`, every part of it in small on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.backend_free]

ROOT = pathlib.Path(__file__).parents[1]
PARTS = {"machine", "correctness", "step", "head", "packed", "decoding", "profile"}
# Kernels that a CPU has not, or packages that are compared with where they are installed.
NOT_HERE = ("Liger", "cut cross entropy", "varlen", "F.linear_cross_entropy")


def test_every_part_writes_its_rows(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--small"]
    command += ["--out", str(tmp_path), "--minutes", "30"]
    # Where it is for there is none, and where there is one, Keras imports it in every part.
    (tmp_path / "tensorflow.py").write_text("raise ImportError('there is none')")
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == PARTS
    failed = [row for row in rows if "failed" in row]
    assert [row for row in failed if not any(name in row["row"] for name in NOT_HERE)] == []
    checks = [row for row in rows if "ok" in row]
    assert len(checks) > 15
    assert [row for row in checks if not row["ok"]] == []
    assert "ended with" not in done.stdout, done.stdout
    assert (tmp_path / "gpu.txt").read_text() == done.stdout
    assert "kernel" in (tmp_path / "profile.txt").read_text()


def test_a_part_over_its_limit_is_ended_and_the_next_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.LIMITS, 0.1))
    arguments = ["--device", "cpu", "--small", "--out", str(tmp_path), "--parts", "head", "packed"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()
    said = capsys.readouterr().out
    for part in ("machine", "head", "packed"):
        assert f"{part} ended with: killed at its limit" in said


def test_what_there_is_no_time_for_is_named(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--small"]
    command += ["--out", str(tmp_path), "--minutes", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in PARTS:
        assert f"## {part}: left out" in done.stdout
