"""Runs a guide cell by cell and prints, as JSON, what each of its code cells prints."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

GUIDES = Path(__file__).parent.parent / "examples" / "guides"

path = Path(sys.argv[1])
tool = runpy.run_path(str(GUIDES / "copy_code_to_turkish.py"))
names = {"__name__": "__main__", "__file__": str(path)}
outputs, lines = [], 0
for marker, text in tool["cells"](path.read_text()):
    lines += 1
    if marker == tool["CODE"]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            # Empty lines before the cell, so that a traceback has the guide's line numbers.
            exec(compile("\n" * lines + text, path, "exec"), names)
        outputs.append(printed.getvalue())
    lines += text.count("\n")
json.dump(outputs, sys.stdout)
