"""The tests that ask a GPU, by pytest, four at a time where pytest-xdist is there.

The versions here need not be those that the project is tested with: warnings are no errors.
"""

import importlib.util
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def run(rows):
    if rows.small:
        return
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "cuda_only" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    command += ["-m", "cuda_only", "-o", "addopts=--strict-markers", *files]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "4"]
    log = rows.out / "marked_tests.txt"
    with log.open("w") as file, rows.side("marked tests"):
        # What has been said is kept when this is over its limit.
        code = subprocess.call(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        last = log.read_text().strip().splitlines()[-1].strip("= ")
        rows.add("marked tests", ok=code == 0, files=len(files), said=last)
