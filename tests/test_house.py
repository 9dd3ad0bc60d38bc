"""What may import what, read from the imports themselves: also those inside of functions."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import keras_llm

pytestmark = pytest.mark.backend_free

PACKAGE = Path(keras_llm.__file__).parent
FRAMEWORKS = {"torch", "jax", "tensorflow"}
# PyTorch's DataLoader serves every backend.
LOADERS = {"data/data_loader.py", "data/loader.py"}

# From low to high: a folder imports from its own line and from those above it, never from one
# below. On one line any order will do, as long as there is no circle.
ORDER = [
    {"arguments", "backend", "checkpoints", "distribution", "folder_lock", "html_template"}
    | {
        "counted_tokens",
        "json_files",
        "names_elsewhere",
        "registration",
        "replaced_files",
        "synced_file",
        "tensor",
        "token_statistics",
        "usual_range",
        "value_text",
    },
    {"losses", "metrics", "optimizers", "schedules"},
    {"data", "generation", "layers"},
    {"checks", "training"},
    {"callbacks", "explanation", "models", "plots", "tracing"},
    {"__init__"},
]


def imported(tree, package=""):
    """The dotted names that a module imports, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            for alias in node.names:
                yield ".".join([*above, *filter(None, [node.module]), alias.name]), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield argument.value, node.lineno


def imports_of(root):
    """`{path: [(dotted name, line)]}` of a package's files; paths are relative to the package."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        package = ".".join(path.relative_to(root.parent).parent.parts)
        found[path.relative_to(root)] = list(imported(ast.parse(path.read_text()), package))
    return found


def file_of(name, root):
    """The package's file that a dotted name stands in, or None if it is not the package's."""
    first, *parts = name.split(".")
    if first != root.name:
        return None
    for length in range(len(parts), -1, -1):
        path = Path(*parts[:length])
        for file in (path / "__init__.py", path.with_suffix(".py") if path.name else path):
            if (root / file).is_file():
                return file
    raise AssertionError(f"{name} is imported and is nowhere")


def folder(file):
    """The folder, or the file, at the top of the package."""
    return file.parts[0].removesuffix(".py")


def edges(root):
    """`(importing file, line, imported file)` of every import inside the package."""
    return [
        (file, line, target)
        for file, names in imports_of(root).items()
        for name, line in names
        if (target := file_of(name, root)) is not None and target != file
    ]


def arrows_up(root, order):
    """The imports that go up, as text."""
    level = {name: height for height, names in enumerate(order) for name in names}
    folders = {folder(file) for file in imports_of(root)}
    assert folders <= set(level), f"where in ORDER are {sorted(folders - set(level))}?"
    return [
        f"{file}:{line} imports {target}"
        for file, line, target in edges(root)
        if level[folder(target)] > level[folder(file)]
    ]


def graph(root, node):
    """What each node imports, for `TopologicalSorter`, which raises if there is a circle."""
    found = {}
    for file, _, target in edges(root):
        if node(file) != node(target):
            found.setdefault(node(file), set()).add(node(target))
    return TopologicalSorter(found)


def strangers(root):
    """The imports of a framework in a file that is not named for it, nor in a folder that is."""
    return [
        f"{file}:{line} imports {name}"
        for file, names in imports_of(root).items()
        for name, line in names
        if (framework := name.split(".")[0]) in FRAMEWORKS
        and not {framework, "ops"} & set(re.split("[/_]", file.with_suffix("").as_posix()))
        and not (framework == "torch" and file.as_posix() in LOADERS)
    ]


def test_imports_go_down_only():
    assert arrows_up(PACKAGE, ORDER) == []


@pytest.mark.parametrize("node", [folder, lambda file: file], ids=["folders", "files"])
def test_no_circle(node):
    graph(PACKAGE, node).prepare()


def test_frameworks_are_imported_where_their_name_says_so():
    assert strangers(PACKAGE) == []


def test_what_tests_share_is_no_test():
    found = [
        f"{file}:{line} imports {name}"
        for file, names in imports_of(Path(__file__).parent).items()
        for name, line in names
        if name.startswith("tests.") and ".test_" in name
    ]
    assert found == []


@pytest.fixture
def house(tmp_path):
    """Writes a small package."""

    def write(**files):
        for name, code in {"__init__": "", **files}.items():
            path = tmp_path / "house" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        return tmp_path / "house"

    return write


@pytest.mark.parametrize(
    "code",
    [
        "import house.roof",
        "from house import roof",
        "from house.roof import tiles",
        "from . import roof",
        "from .roof import tiles",
        "def later():\n    from house import roof",
        "import importlib\nimportlib.import_module('house.roof')",
    ],
)
def test_every_way_to_import_is_seen(house, code):
    root = house(cellar=code, roof="tiles = 1")
    [found] = arrows_up(root, [{"cellar"}, {"roof"}, {"__init__"}])
    assert found.startswith("cellar.py:") and found.endswith(" imports roof.py")
    assert arrows_up(root, [{"roof"}, {"cellar"}, {"__init__"}]) == []
    graph(root, folder).prepare()
    with pytest.raises(ValueError, match="cycle"):
        graph(house(roof="def f():\n    import house.cellar"), folder).prepare()


def test_a_framework_out_of_place_is_seen(house):
    root = house(torch="import torch", ops="import jax", roof="def f():\n    from torch import nn")
    assert strangers(root) == ["roof.py:2 imports torch.nn"]
    assert strangers(house(roof="", jax="import tensorflow as tf")) == [
        "jax.py:1 imports tensorflow"
    ]


def test_a_new_folder_needs_a_place(house):
    with pytest.raises(AssertionError, match="shed"):
        arrows_up(house(shed=""), [{"__init__"}])
