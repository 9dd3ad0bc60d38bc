"""What a class or a function says about itself, in its docstring and in its code."""

import ast
import inspect
import re
import textwrap


def first_sentence(thing) -> str:
    """The first sentence of a docstring of its own; empty where it has none.

    >>> first_sentence(first_sentence)
    'The first sentence of a docstring of its own; empty where it has none'
    """
    # Not inspect.getdoc, which returns the docstring of a base class where there is none.
    paragraph = inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0]
    sentence = re.split(r"\.(?:\s|$)", " ".join(paragraph.split()))[0]
    return sentence.replace("`", "").rstrip(":")


def formula(function) -> str:
    """The expression that a function returns, where it has no other statement; else empty.

    >>> formula(first_sentence)
    ''
    """
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        # Typed at a prompt, or not Python, or a lambda in the middle of a line.
        return ""
    match getattr(definition, "body", ()):
        case [ast.Return(value)] | [ast.Expr(ast.Constant()), ast.Return(value)] if value:
            return ast.unparse(value)
    return ""


def name_of(thing) -> str:
    """The name of a loss, a metric or a schedule: of its class or its function, or the string."""
    if isinstance(thing, str):
        return thing
    return getattr(thing, "__name__", type(thing).__name__)


def own_equation(thing) -> tuple[str, str] | None:
    """What `thing.equation()` returns; None where there is none, or where it may be wrong.

    A subclass that changes a method of the class that wrote the equation computes something else.
    """
    for cls in type(thing).__mro__:
        if "equation" in vars(cls):
            return thing.equation()
        methods = {name for name, value in vars(cls).items() if callable(value)}
        if any(not name.startswith("__") or name == "__call__" for name in methods - CONFIG):
            return None
    return None


# Methods that change nothing of what is computed.
CONFIG = {"get_config", "from_config"}
