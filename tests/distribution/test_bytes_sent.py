"""What is sent an update, counted on small worlds, is what docs/several_devices.md says."""

import json
from pathlib import Path

import pytest

from tests.distribution.processes import launch

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "bytes_sent.py"
WAYS = ["plain", "eight micro-batches", "accumulation", "frozen", "bfloat16"]
VOCAB, WIDTH = 2000, 128


@pytest.fixture(scope="module", params=[2, 4])
def world(request):
    """The number of processes, and what each of them has printed of each way."""
    printed = launch(request.param, SCRIPT)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    found = {way: [line for line in lines if line["name"] == way] for way in WAYS}
    assert [len(lines) for lines in found.values()] == [request.param] * len(WAYS)
    return request.param, found


def expected(processes, parameters):
    """The page's formula: a ring, in float32."""
    return 2 * (processes - 1) / processes * 4 * parameters


@pytest.mark.parametrize("way", WAYS)
def test_what_the_kernel_counts_is_the_formula(world, way):
    processes, found = world
    for line in found[way]:
        # Counts, metrics and the headers of messages are a few kB of megabytes.
        assert line["written"] == pytest.approx(expected(processes, line["parameters"]), rel=0.01)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_reduced_once_an_update(world, way):
    _, found = world
    for line in found[way]:
        for sizes in line["reductions"]:
            # All gradients fit in one bucket.
            assert sizes.count(4 * line["parameters"]) == 1
            # And for each variable whether it has one, in float64, beside three counts.
            assert 8 * (3 + line["variables"]) in sizes
            assert sum(sizes) < 4 * line["parameters"] + 2000


@pytest.mark.parametrize("way", WAYS)
def test_explain_says_what_is_sent(world, way):
    processes, found = world
    for line in found[way]:
        assert line["explained"] == int(expected(processes, line["parameters"]))
        assert line["shown"].endswith(" by each process")


def test_what_is_frozen_is_not_sent(world):
    _, found = world
    assert {line["parameters"] for line in found["frozen"]} == {VOCAB * WIDTH}
    assert all(line["parameters"] > 1.5 * VOCAB * WIDTH for line in found["plain"])


def test_the_numbers_of_a_thousand_devices():
    """What the page's table says, in GB, is what its formulas say."""
    page = (ROOT / "docs" / "several_devices.md").read_text()
    table = page.split("| kind, N = 1,024 |")[1].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    n, found = 1024, {}
    for kind, *cells in rows:
        found[kind] = [
            [float(number.replace(",", "")) for number in cell.split(" + ")] for cell in cells
        ]

    def hybrid(p, s):
        # Sums of a shard's gradients between n / s replicas, by a ring.
        between = 2 * (n / s - 1) / (n / s) * 4 * p / s
        return [16 * p / s], [(2 + 2 + 4) * p * (s - 1) / s, between]

    wanted = {
        "data parallel": lambda p: ([16 * p], [2 * 4 * p * (n - 1) / n]),
        "optimizer sharded": lambda p: ([8 * p + 8 * p / n], [(4 + 4) * p * (n - 1) / n]),
        "parameters sharded": lambda p: ([16 * p / n], [(2 + 2 + 4) * p * (n - 1) / n]),
        "hybrid, S = 8, inside and between": lambda p: hybrid(p, 8),
        "hybrid, S = 64, inside and between": lambda p: hybrid(p, 64),
    }
    assert found.keys() == wanted.keys()
    for kind, cells in found.items():
        expected = [*wanted[kind](7), *wanted[kind](70)]
        for cell, want in zip(cells, expected, strict=True):
            assert cell == pytest.approx(want, rel=0.005), kind
