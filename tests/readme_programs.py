"""The programs of README, on little data."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
TEXT = "\n\n".join(
    f"The with statement number {i} wraps the block of line {i % 7}." for i in range(60)
)
KEEP_WEIGHTS = """
import numpy as np
variables = [*model.variables, *model.optimizer.variables]
np.savez("weights.npz", *(keras.ops.convert_to_numpy(v) for v in variables))
"""


def blocks(title):
    """The Python code under a heading, up to the next one."""
    # What stands in code is not a heading.
    texts = re.split(r"(```\w*\n.*?```\n)", README, flags=re.DOTALL)
    heading, found = "", []
    for text in texts:
        if code := re.match(r"```python\n(.*?)```", text, flags=re.DOTALL):
            found += [code[1]] if heading.startswith(title) else []
        elif headings := re.findall(r"^#+ (.*)", text, flags=re.MULTILINE):
            heading = headings[-1]
    return found


def smaller(code):
    """A program about Python's manual, on my.txt and with a small model."""
    code = code.replace('data.load("python_manual")', 'data.load_text("my.txt")')
    code = code.replace("d_model=256, num_layers=4", "d_model=32, num_layers=1")
    return code.replace("seq_len=256, batch_size=16", "seq_len=32, batch_size=4")
