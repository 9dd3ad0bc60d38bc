"""What happens to one process ends all, with the reason; the checkpoint goes on with any number."""

import json
import shutil
import time

import numpy as np
import pytest

from tests.distribution import faulty
from tests.distribution.processes import launch, start

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]

# All have ended after so many seconds, however slow the machine is to start them.
LIMIT = 30


def run(size, *arguments, **more):
    """Exit status and output of each process, and the seconds between their ends."""
    processes, ends, codes = start(size, faulty.__file__, *arguments, **more), {}, {}
    began = time.monotonic()
    try:
        while len(ends) < size:
            for rank, process in enumerate(processes):
                if rank not in ends and (code := process.poll()) is not None:
                    ends[rank], codes[rank] = time.monotonic(), code
            assert time.monotonic() - began < 300
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    texts = [process.printed + process.errors for process in processes]
    return [codes[rank] for rank in range(size)], texts, max(ends.values()) - min(ends.values())


def result(folder, rank=0):
    return json.loads((folder / f"result.{rank}").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happens to, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    codes, texts, _ = run(1, folder, "none")
    assert codes == [0], texts
    return result(folder)


REASONS = {
    "kill": "Another process of the run has ended without an error of its own",
    "error": "Process 1 of 2 has ended the run: ValueError: a bad batch",
    "memory": "Process 1 of 2 has ended the run: OutOfMemoryError: no room for 1 GB",
    "term": "Process 1 of 2 has ended the run: SystemExit: 143",
}


@pytest.mark.parametrize("kind", REASONS)
def test_all_end_with_the_reason_and_the_run_continues(kind, whole, tmp_path):
    # Two runs share out what they have, and one of them goes on as others do.
    shard = {"memory": "optimizer", "term": "parameters"}.get(kind, "")
    codes, texts, seconds = run(2, tmp_path, kind, KERAS_LLM_SHARD=shard)
    assert all(codes), texts
    assert REASONS[kind] in texts[0], texts[0]
    assert seconds < LIMIT
    saved = sorted(path.name for path in (tmp_path / "run").glob("step_*/complete"))
    assert saved == ["complete"] * len(saved) and saved
    newest = max(path.name for path in (tmp_path / "run").glob("step_*"))
    # A signal is waited for until the step is over, and a checkpoint written.
    at = faulty.AT + 1 if kind == "term" else 6
    assert newest.startswith(f"step_{at:09}"), newest
    for size, shard in {
        "kill": [(1, ""), (2, "optimizer"), (4, "parameters")],
        "term": [(1, "")],
    }.get(kind, ()):
        folder = tmp_path / str(size)
        shutil.copytree(tmp_path / "run", folder / "run")
        codes, texts, _ = run(size, folder, "none", KERAS_LLM_SHARD=shard)
        assert not any(codes), texts
        for rank in range(size):
            continued = result(folder, rank)
            for key in ("loss", "perplexity", "gradient_norm"):
                np.testing.assert_allclose(
                    continued["history"][key], whole["history"][key], rtol=2e-6
                )
            np.testing.assert_allclose(continued["sums"], whole["sums"], rtol=1e-6)
            left = len(whole["losses"]) - at
            np.testing.assert_allclose(continued["losses"], whole["losses"][-left:], rtol=2e-6)
        if size != 2:
            assert "processes: 2 before" in texts[0]


def test_a_stop_in_one_process_stops_all_after_the_same_step(tmp_path):
    codes, texts, _ = run(2, tmp_path, "stop")
    assert codes == [0, 0], texts
    first, second = result(tmp_path, 0), result(tmp_path, 1)
    assert len(first["losses"]) == len(second["losses"]) == faulty.AT
    assert first["sums"] == second["sums"]


def test_what_fails_alike_in_all_leaves_them_together(tmp_path):
    """An argument that is refused everywhere may be caught, and the script goes on."""
    script = tmp_path / "script.py"
    script.write_text(
        "import keras_llm, numpy as np\n"
        "from tests.distribution.faulty import *\n"
        "model = models.CausalTransformer(VOCAB, d_model=8, num_layers=1, num_heads=2)\n"
        "model.compile(adamw(), loss())\n"
        "try:\n"
        "    model.fit(X, Y, epochs=1, steps=3, verbose=0)\n"
        "    model.fit(X, Y, epochs=0.5, steps=3, verbose=0)\n"
        "except (TypeError, ValueError) as error:\n"
        "    pass\n"
        "sys.stdout.write(f'went on {model.fit(X, Y, verbose=0).history[\"loss\"][0] > 0}\\n')\n"
    )
    assert launch(2, script).count("went on True") == 2
