"""What a GPU shows: one command on a bare machine, each part as it ends, within six minutes.

    python benchmarks/gpu.py --out results                       # everything
    python benchmarks/gpu.py --out results --parts step          # one part
    python benchmarks/gpu.py --device cpu --small                # every part, tiny, on a CPU

It needs PyTorch with CUDA (2.11 or newer), Python 3.11 or newer, and keras with what keras needs.
On a machine without a network, bring the missing packages as wheels. Where there is a network:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 \\
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \\
        --platform manylinux2014_x86_64 -d wheels \\
        keras==3.15.1 optree==0.20.0 namex==0.1.0 liger-kernel==0.8.5 cut-cross-entropy==25.1.1

and on the machine:

    python -m pip install --no-index --no-deps --no-compile --target site wheels/*.whl
    PYTHONPATH=site python benchmarks/gpu.py --out results

keras also needs absl-py, h5py, ml-dtypes and rich, and keras_llm numpy, jinja2, requests and
tokenizers: add the wheels of those that `python -m pip show` does not know there. liger-kernel and
cut-cross-entropy are only compared with, transformers and accelerate too (parts step and decoding);
the marked tests need pytest and hypothesis. tensorflow-datasets is not needed.

DIR gets `gpu.txt` (what is printed), `gpu.jsonl` (one row a line), `marked_tests.txt` and
`profile.txt`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

# The parts in order of importance, and the most seconds that each may take.
LIMITS = {
    "machine": 60,
    "correctness": 80,
    "step": 170,
    "head": 70,
    "marked_tests": 110,
    "packed": 40,
    "decoding": 90,
    "profile": 60,
}
WARM_LIMIT = 120
HERE = pathlib.Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="where the results go")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--step-only", action="store_true", help="the same as --parts step")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--minutes", type=float, default=6.0, help="the most that all may take")
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="gpu-"))
    if args.part:
        run_part(args)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu.txt", "gpu.jsonl"):
        (args.out / name).write_text("")
    parts = ["step"] if args.step_only else args.parts
    deadline = time.monotonic() + 60 * args.minutes - 5
    with tempfile.TemporaryDirectory() as caches:
        tell(args.out, of_part("machine", args, caches, deadline))
        with warm_step(args, parts, caches) as wait:
            for part in parts:
                if part == "machine":
                    continue
                if part != "correctness":
                    # From here on, times are taken.
                    wait()
                tell(args.out, of_part(part, args, caches, deadline))


def tell(out, text):
    """Prints a part's text, and adds it to the file."""
    print(text, flush=True)
    with open(out / "gpu.txt", "a") as file:
        file.write(text + "\n")


def of_part(part, args, caches, deadline):
    """Runs a part in a process of its own, and returns its rows as text."""
    seen = len(read_rows(args.out))
    left = deadline - time.monotonic()
    if left < 10:
        return f"\n## {part}: left out, the time is up"
    limit = min(LIMITS[part], left)
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = start(part, args, caches, log, "--seconds", str(limit))
        try:
            ended = f"{process.wait(limit):d}"
        except subprocess.TimeoutExpired:
            ended = "killed at its limit"
        finally:
            stop(process)
        log.seek(0)
        last = log.read()[-2500:]
    lines = [f"\n## {part}: {time.monotonic() - begin:.0f} s"]
    lines += table(read_rows(args.out)[seen:])
    if ended != "0":
        lines += [f"{part} ended with: {ended}. The end of its output:", last]
    return "\n".join(lines)


def start(part, args, caches, log, *options):
    """The part's process, which leads a group of all that it starts itself."""
    command = [sys.executable, __file__, "--part", part, "--out", str(args.out), *options]
    command += ["--device", args.device, *(["--small"] if args.small else [])]
    environ = environment(args, caches)
    output = {"stdout": log, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **output, env=environ, process_group=0)


def stop(process):
    """Ends a part, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def warm_step(args, parts, caches):
    """Has the step's sides compile while the numbers are checked; yields what waits for that."""
    if args.small or "step" not in parts:
        yield lambda: None
        return
    process = start("step", args, caches, subprocess.DEVNULL, "--warm")
    end = time.monotonic() + WARM_LIMIT

    def wait():
        try:
            process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            stop(process)

    try:
        yield wait
    finally:
        stop(process)


def environment(args, caches):
    """What the parts' processes are told."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "KERAS_BACKEND": "torch",
        "TORCHINDUCTOR_CACHE_DIR": caches,
        "TRITON_CACHE_DIR": os.path.join(caches, "triton"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if args.device == "cpu":
        settings |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if args.small:
        # Tries the command, not the compiler.
        settings["TORCHDYNAMO_DISABLE"] = "1"
    return {**os.environ, **settings}


def run_part(args):
    """The part itself, in its own process."""
    import importlib

    from gpu_parts.rows import Rows

    module = importlib.import_module(f"gpu_parts.{args.part}")
    rows = Rows(args.part, args.out, args.device, args.small, args.seconds)
    (module.warm if args.warm else module.run)(rows)


def read_rows(out):
    with open(out / "gpu.jsonl") as file:
        return [json.loads(line) for line in file]


def table(rows):
    """Rows as lines of Markdown, a table for those of the same columns."""
    lines, columns = [], None
    for row in rows:
        row = {key: value for key, value in row.items() if key != "part"}
        if list(row) != columns:
            columns = list(row)
            lines += ["", "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
        lines.append("| " + " | ".join(map(str, row.values())) + " |")
    return lines


if __name__ == "__main__":
    main()
