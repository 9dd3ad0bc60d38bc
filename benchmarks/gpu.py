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

DIR gets `gpu.txt` (what is printed), `gpu.jsonl` (one row a line) and `profile.txt`.
"""

import argparse
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
    "machine": 40,
    "correctness": 90,
    "step": 200,
    "head": 60,
    "packed": 30,
    "decoding": 70,
    "profile": 40,
}
WHOLE = 355
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
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="gpu-"))
    if args.part:
        run_part(args)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu.txt", "gpu.jsonl"):
        (args.out / name).write_text("")
    parts = ["step"] if args.step_only else args.parts
    deadline = time.monotonic() + WHOLE
    with tempfile.TemporaryDirectory() as caches:
        for part in dict.fromkeys(["machine", *parts]):
            tell(args.out, of_part(part, args, caches, deadline))


def tell(out, text):
    """Prints a part's text, and adds it to the file."""
    print(text, flush=True)
    with open(out / "gpu.txt", "a") as file:
        file.write(text + "\n")


def of_part(part, args, caches, deadline):
    """Runs a part in a process of its own, and returns its rows as text."""
    seen = len(read_rows(args.out))
    limit = min(LIMITS[part], deadline - time.monotonic())
    if limit < 5:
        return f"\n## {part}: left out, the time was up"
    command = [sys.executable, __file__, "--part", part, "--out", str(args.out)]
    command += ["--device", args.device, *(["--small"] if args.small else [])]
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(args, caches),
            process_group=0,
        )
        try:
            ended = f"{process.wait(limit):d}"
        except subprocess.TimeoutExpired:
            ended = "killed at its limit"
        finally:
            # What the part has started too.
            stop_group(process)
        log.seek(0)
        last = log.read()[-2500:]
    lines = [f"\n## {part}: {time.monotonic() - begin:.0f} s"]
    lines += table(read_rows(args.out)[seen:])
    if ended != "0":
        lines += [f"{part} ended with: {ended}. The end of its output:", last]
    return "\n".join(lines)


def stop_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


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
    with Rows(args.part, args.out, args.device, args.small) as rows:
        module.run(rows)


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
