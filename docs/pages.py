"""Writes the site's pages: README, guides, examples, results, and one for each folder of the API.

    python docs/pages.py build/pages

A guide's page shows the output that stands in the guide's file: nothing runs here.
"""

import argparse
import ast
import os
import re
import runpy
import shutil
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
EXAMPLES = ROOT / "examples"
GUIDES = EXAMPLES / "guides"
TOOL = runpy.run_path(str(GUIDES / "update.py"))

# Files that are pages, and those that links lead to.
TEXTS = {
    "README.md": "index.md",
    "docs/learn.md": "learn/index.md",
    "docs/outside_models.md": "learn/outside_models.md",
    "docs/steps.md": "learn/steps.md",
    "docs/long_runs.md": "learn/long_runs.md",
    "docs/large_data.md": "learn/large_data.md",
    "docs/several_devices_jax.md": "learn/several_devices_jax.md",
    "docs/several_devices.md": "learn/several_devices.md",
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
PAGES = TEXTS | {
    **{
        f"examples/guides/{path.name}": f"learn/{path.stem}.md"
        for path in GUIDES.glob("[0-9]*_*.py")
    },
    **{f"examples/{path.name}": f"examples/{path.stem}.md" for path in EXAMPLES.glob("*.py")},
}
# One picture for light pages and one for dark ones; some stand in pairs.
PICTURE = re.compile(
    r'<picture><source [^>]*srcset="[^"]*?pictures/([^"]+)"><img alt="([^"]+)" '
    r'src="[^"]*?pictures/([^"]+)"( width="49%")?></picture>'
)

# Pages outside the sections have no list of pages at their left.
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
    "checkpoints",
    "training",
    "distribution",
    "plots",
)
EXPLANATION = "keras_llm.explanation.explanation.Explanation"

EXPLAIN_AND_TRACE = f"""
# `keras_llm`

::: keras_llm
    options: {{members: [distribute, explain, trace]}}

::: {EXPLANATION}
    options: {{show_root_heading: true, show_root_toc_entry: true}}
"""


def main():
    """Writes all pages and their pictures into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; what is there is replaced")
    arguments = parser.parse_args()
    pages = {name: ("" if "/" in name else WIDE) + page(source) for source, name in TEXTS.items()}
    pages |= guides() | examples() | api()

    shutil.rmtree(arguments.folder, ignore_errors=True)
    shutil.copytree(DOCS / "pictures", arguments.folder / "pictures")
    for name in ("site.css", "iframe-worker.js"):
        shutil.copy(DOCS / name, arguments.folder)
    for name, text in pages.items():
        path = arguments.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def page(source: str) -> str:
    """A page of the repository as the site has it: with the site's links and pictures."""
    here, there = os.path.dirname(source), os.path.dirname(PAGES[source]) or "."

    def link(match):
        target = os.path.normpath(os.path.join(here, match[1]))
        if target.startswith("docs/pictures/"):
            return f"]({os.path.relpath(target.removeprefix('docs/'), there)})"
        if target not in PAGES:
            return match[0]
        return f"]({os.path.relpath(PAGES[target], there)}{match[2]})"

    def picture(match):
        dark, words, light, width = match.groups()
        kind = " .half" if width else ""
        return "".join(
            f"![{words}]({os.path.relpath(f'pictures/{name}', there)}#only-{palette}){{{kind} }}"
            for name, palette in ((light, "light"), (dark, "dark"))
        )

    text = re.sub(r"\]\(([\w./-]+)((?:#[\w-]+)?)\)", link, (ROOT / source).read_text())
    return re.sub(PICTURE, picture, text)


def guides() -> dict[str, str]:
    """Every guide in both languages: prose, code, and what the code prints."""
    pages = {}
    for path in sorted(GUIDES.glob("[0-9]*_*.py")):
        for folder, script, other in (
            ("learn", path.name, f"[Türkçe](../ogren/{path.stem}.md)"),
            ("ogren", f"tr/{path.name}", f"[English](../learn/{path.stem}.md)"),
        ):
            links = f"`python examples/guides/{script}` · {other}"
            pages[f"{folder}/{path.stem}.md"] = guide((GUIDES / script).read_text(), links)
    return pages


def guide(script: str, links: str) -> str:
    """A script of cells as a page, with links below its title."""
    parts = []
    for marker, text in TOOL["cells"](script):
        if marker == TOOL["CODE"]:
            code, shown = TOOL["code_and_output"](text)
            parts.append(fenced("python", code))
            if shown:
                parts.append(fenced("{ .text .printed }", shown))
        else:
            parts.append(re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() + "\n")
    title, first = parts[0].split("\n", 1)
    return "\n".join([title, "", links, first, *parts[1:]])


def examples() -> dict[str, str]:
    """The example programs: their docstring, and their code."""
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
