"""Arguments by the names that they have in other libraries: an error says what to write here."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def check_names(
    called: Callable, given: Mapping[str, Any], write_instead: Mapping[str, str]
) -> None:
    """Raises `TypeError` for an argument that has another name here.

    `write_instead` says which: `{"lr": "learning_rate=..."}`. Names in the signature of the class
    or function that is `called` are its own.
    """
    for name in given.keys() & write_instead.keys() - inspect.signature(called).parameters.keys():
        raise TypeError(
            f"{called.__name__} has no argument {name}; write {write_instead[name]}. "
            f"Received: {name}={given[name]!r}"
        )


def names_elsewhere(
    write_instead: Mapping[str, str],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function or method so that it answers other libraries' names as `check_names`.

    >>> @names_elsewhere({"max_length": "max_new_tokens"})
    ... def generate(ids, max_new_tokens=60): ...
    >>> generate([1], max_length=20)
    Traceback (most recent call last):
    TypeError: generate has no argument max_length; write max_new_tokens. Received: max_length=20
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check_names(function, kwargs, write_instead)
            return function(*args, **kwargs)

        return checked

    return decorate


class NamesElsewhere:
    """Mixin: the constructor answers other libraries' names as `check_names`."""

    write_instead: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args, **kwargs):
        """Before Python's own error, which only says that there is no such argument."""
        check_names(cls, kwargs, cls.write_instead)
        return super().__new__(cls)


class NamesInside:
    """Mixin of a model around one of another library: an error says where that one's methods are.

    Attributes:
        inside: The attribute that the other model is.
    """

    inside: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        """Called where there is no such attribute, and by PyTorch for parts of a module."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            # Before the constructor has made it, nothing is asked of what is inside.
            is_early = name.startswith("_") or name == self.inside
            if not is_early and hasattr(getattr(self, self.inside, None), name):
                text += f"; what it was made of has: model.{self.inside}.{name}"
            raise AttributeError(text) from None
