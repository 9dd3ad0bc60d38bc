"""What a class or a function says about itself."""

import ast
import inspect
import re
import textwrap


def first_sentence(thing) -> str:
    """The first sentence of a docstring of its own; empty where it has none.

    >>> import keras_llm
    >>> first_sentence(keras_llm.metrics.Perplexity)
    'Perplexity over the epoch: how many tokens the model hesitates between'
    """
    # Not inspect.getdoc: what a base class says is not about this one.
    paragraph = inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0]
    sentence = re.split(r"\.(?:\s|$)", " ".join(paragraph.split()))[0]
    return sentence.replace("`", "").rstrip(":")


def formula(function) -> str:
    """What a function returns, as it was written; empty unless that is all that it does.

    >>> formula(first_sentence)
    ''
    """
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        # Typed at a prompt, or not Python, or a lambda in the middle of a line.
        return ""
    statements = [s for s in getattr(definition, "body", ()) if not is_docstring(s)]
    if len(statements) != 1 or not isinstance(statements[0], ast.Return):
        return ""
    return ast.unparse(statements[0].value)


def is_docstring(statement) -> bool:
    """Whether a statement is a constant by itself."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def name_of(thing) -> str:
    """What a loss, a metric or a schedule is called: its class, or the function's name, or itself
    if it is a string."""
    if isinstance(thing, str):
        return thing
    return getattr(thing, "__name__", type(thing).__name__)
