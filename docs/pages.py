"""Writes the site's pages: README, guides, examples, results, and one for each folder of the API.

    python docs/pages.py --help

Guides run here, in processes of their own, and their pages show what they print.
"""

import argparse
import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
EXAMPLES = ROOT / "examples"
GUIDES = EXAMPLES / "guides"
TOOL = runpy.run_path(str(GUIDES / "copy_code_to_turkish.py"))

# A page that is a section of its own has no others to list beside it.
WIDE = "---\nhide: [navigation]\n---\n"

# The pages of the API.
FOLDERS = (
    "losses",
    "metrics",
    "optimizers",
    "schedules",
    "models",
    "layers",
    "generation",
    "data",
    "callbacks",
    "training",
    "plots",
)

EXPLAIN_AND_TRACE = """
# `keras_llm`

::: keras_llm
    options: {members: [explain, trace]}

::: keras_llm.explanation.explanation.Explanation
    options: {show_root_heading: true, show_root_toc_entry: true}
"""


def main():
    """Writes all pages, and what they show, into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; what is there is replaced")
    parser.add_argument("--without-output", action="store_true", help="do not run the guides")
    arguments = parser.parse_args()
    run = no_outputs if arguments.without_output else outputs
    pages = {"index.md": home(), "results.md": WIDE + (ROOT / "benchmarks/RESULTS.md").read_text()}
    pages |= guides(run) | examples() | api()

    shutil.rmtree(arguments.folder, ignore_errors=True)
    shutil.copytree(DOCS / "pictures", arguments.folder / "pictures")
    for name in ("site.css", "iframe-worker.js"):
        shutil.copy(DOCS / name, arguments.folder)
    for name, text in pages.items():
        path = arguments.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def home() -> str:
    """README, with the site's own pages for its links, and a picture for each of its palettes."""
    text = WIDE + (ROOT / "README.md").read_text().replace('"docs/pictures/', '"pictures/')
    text = text.replace("](benchmarks/RESULTS.md)", "](results.md)")
    text = re.sub(r"\]\(examples/guides/(\w+)\.py\)", r"](learn/\1.md)", text)
    return re.sub(
        r'<picture><source [^>]*srcset="([^"]+)"><img alt="([^"]+)" src="([^"]+)"[^>]*></picture>',
        r"![\2](\3#only-light){ .half }![\2](\1#only-dark){ .half }",
        text,
    )


def guides(run) -> dict[str, str]:
    """Every guide in both languages: prose, code, and what the code prints."""
    names = sorted(path.stem for path in GUIDES.glob("[0-9]_*.py"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        printed = dict(zip(names, pool.map(run, names), strict=True))
    pages = {}
    for name, texts in printed.items():
        for folder, script, other in (
            ("learn", f"{name}.py", f"[Türkçe](../ogren/{name}.md)"),
            ("ogren", f"tr/{name}.py", f"[English](../learn/{name}.md)"),
        ):
            links = f"`python examples/guides/{script}` · {other}"
            pages[f"{folder}/{name}.md"] = guide((GUIDES / script).read_text(), links, texts)
    return pages


def outputs(name: str) -> list[str]:
    """What each code cell of a guide prints; both languages have the same code."""
    command = [sys.executable, str(DOCS / "run_guide.py"), str(GUIDES / f"{name}.py")]
    # A guide's model is too small to share: a second thread would only wait for the first.
    fixed = {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | fixed)
    if done.returncode:
        sys.exit(f"examples/guides/{name}.py failed:\n{done.stderr}")
    return json.loads(done.stdout)


def no_outputs(name: str) -> list[str]:
    """Nothing."""
    return []


def guide(script: str, links: str, texts: list[str]) -> str:
    """A script of cells as a page, with links below its title."""
    texts = iter(texts)
    parts = []
    for marker, text in TOOL["cells"](script):
        if marker == TOOL["CODE"]:
            parts.append(fenced("python", text))
            if printed := next(texts, ""):
                parts.append(fenced("{ .text .printed }", printed))
        else:
            parts.append(re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() + "\n")
    title, first = parts[0].split("\n", 1)
    return "\n".join([title, "", links, first, *parts[1:]])


def examples() -> dict[str, str]:
    """The example programs: what they say about themselves, and their code."""
    pages = {}
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        about, code = ast.get_docstring(ast.parse(text)), text.split('"""', 2)[2]
        parts = [f"# {path.name}", about, fenced("python", code)]
        pages[f"examples/{path.stem}.md"] = "\n\n".join(parts)
    return pages


def api() -> dict[str, str]:
    """A page for each folder: its docstrings."""
    pages = {
        f"api/{name}.md": f"# `keras_llm.{name}`\n\n::: keras_llm.{name}\n" for name in FOLDERS
    }
    return pages | {"api/keras_llm.md": EXPLAIN_AND_TRACE}


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return "\n".join([f"```{language}", text.strip("\n"), "```", ""])


if __name__ == "__main__":
    main()
