"""Writes below each code cell of a guide what it prints, and copies the code to the Turkish guides.

    python examples/guides/update.py

Run this after a change to a guide. Code is written once, in the English guides; there, and in the
copies, each line that a cell prints follows the cell as a comment that starts with `# ->`.
Only the prose of a Turkish guide is its own. The two must have the same kinds of cells in the same
order.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

GUIDES = Path(__file__).parent
CODE = "# %%"
SHOWN = "# ->"
# Lines of `explain` that differ between machines.
OF_THIS_MACHINE = re.compile(r"^(  (?:software|device) +).*", flags=re.MULTILINE)
# A guide's models are too small for a second thread. The screens are made 80 columns wide.
FIXED = {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def cells(source: str) -> list[tuple[str, str]]:
    """The cells of a script in percent format, each as its marker and all text after it."""
    parts = re.split(r"^(# %%(?: \[markdown\])?)\n", source, flags=re.MULTILINE)
    if parts[0]:
        raise ValueError(f"a guide starts with '# %%'. Received: {parts[0][:60]!r}")
    return list(zip(parts[1::2], parts[2::2], strict=True))


def code_and_output(cell: str) -> tuple[str, str]:
    """A code cell's code, and what it says that it prints."""
    lines = cell.splitlines(keepends=True)
    code = "".join(line for line in lines if not line.startswith(SHOWN))
    shown = [line[len(SHOWN) :].removeprefix(" ") for line in lines if line.startswith(SHOWN)]
    return code, "".join(shown)


def with_output(cell: str, printed: str) -> str:
    """A code cell that says that it prints this."""
    code = code_and_output(cell)[0]
    shown = "".join(f"{SHOWN} {line}".rstrip() + "\n" for line in printed.splitlines())
    return code.rstrip() + "\n" + shown + space_after(code)[1:]


def space_after(text: str) -> str:
    """The empty lines at the end of a cell; a function needs two after it."""
    return text[len(text.rstrip()) :]


def run(source: str, path: str, names: dict) -> list[str]:
    """Runs a guide; returns what each code cell prints. `names` is filled with its variables."""
    printed, lines = [], 0
    for marker, text in cells(source):
        lines += 1
        if marker == CODE:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                # Empty lines before the cell, so that a traceback has the guide's line numbers.
                exec(compile("\n" * lines + text, path, "exec"), names)
            printed.append(OF_THIS_MACHINE.sub(r"\1...", output.getvalue()))
        lines += text.count("\n")
    return printed


def with_outputs(source: str, printed: list[str]) -> str:
    """The guide with what each of its code cells prints."""
    texts = iter(printed)
    return "".join(
        f"{marker}\n{with_output(text, next(texts)) if marker == CODE else text}"
        for marker, text in cells(source)
    )


def with_code_of(english: str, turkish: str) -> str:
    """The Turkish guide with the English guide's code and output."""
    pairs = list(zip(cells(english), cells(turkish), strict=True))
    for number, ((marker, _), (other, _)) in enumerate(pairs):
        if marker != other:
            raise ValueError(f"cell {number} is {marker!r} in English and {other!r} in Turkish")
    return "".join(
        f"{marker}\n{text if marker == CODE else translated.rstrip() + space_after(text)}"
        for (marker, text), (_, translated) in pairs
    )


def main():
    """Updates all guides, each run in a process of its own."""
    for path in sorted(GUIDES.glob("[0-9]*_*.py")):
        command = [sys.executable, __file__, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | FIXED)
        if done.returncode:
            sys.exit(f"{path} failed")
        path.write_text(with_outputs(path.read_text(), json.loads(done.stdout)))
        translation = GUIDES / "tr" / path.name
        translation.write_text(with_code_of(path.read_text(), translation.read_text()))
        print(path.name)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        guide = Path(sys.argv[1])
        json.dump(run(guide.read_text(), str(guide), {"__name__": "__main__"}), sys.stdout)
    else:
        main()
