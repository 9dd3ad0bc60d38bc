"""What `SECURITY.md` promises of the code: nothing that is loaded is run."""

import ast
from pathlib import Path

import pytest

import keras_llm

pytestmark = pytest.mark.backend_free

PACKAGE = Path(keras_llm.__file__).parent
# Modules that make objects, or run code, out of what they read.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
# What processes send to each other in pickles.
OBJECTS = {"all_gather_object", "broadcast_object_list", "gather_object"}
OBJECTS |= {"recv_object_list", "scatter_object_list", "send_object_list"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Functions that unpickle unless they are told not to, and how they are told.
LOADERS = {"torch.load": "weights_only=True", "np.load": None, "numpy.load": None}


def found(code: str) -> list[str]:
    """What a module has that may run a file, each as it is written."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    imports = [
        name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        )
        if name and name.split(".")[0] in MODULES
    ]
    return imports + [ast.unparse(call) for call in calls if runs(call)]


def runs(call: ast.Call) -> bool:
    """Whether a call may run what it is given."""
    name = ast.unparse(call.func)
    said = [ast.unparse(keyword) for keyword in call.keywords]
    if "trust_remote_code=True" in said or "allow_pickle=True" in said:
        return True
    if name.split(".")[-1] in OBJECTS:
        return True
    return name in BUILTINS or (name in LOADERS and (LOADERS[name] or "") not in ["", *said])


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "def f():\n    import dill",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "dist.broadcast_object_list(found)",
    ],
)
def test_what_runs_a_file_is_seen(code):
    assert len(found(code)) == 1


@pytest.mark.parametrize(
    "code",
    ["torch.load(path, weights_only=True)", "model.eval()", "np.load(path)", "re.compile(x)"],
)
def test_what_does_not_is_not(code):
    assert found(code) == []


def test_nothing_in_the_package_runs_a_file():
    files = {path: found(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    assert {str(path): calls for path, calls in files.items() if calls} == {}
