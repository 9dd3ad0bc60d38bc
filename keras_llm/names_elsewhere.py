"""Arguments by the names that they have in other libraries."""

import inspect
from typing import ClassVar


def check_names(cls: type, given: dict, write_instead: dict[str, str]) -> None:
    """Raises `TypeError` for an argument that has another name here.

    Args:
        cls: What is constructed. A name that its constructor knows is its own.
        given: The arguments that were given by name.
        write_instead: For such a name, what to write.
    """
    for name in given.keys() & write_instead.keys() - inspect.signature(cls).parameters.keys():
        raise TypeError(
            f"{cls.__name__} has no argument {name}; write {write_instead[name]}. "
            f"Received: {name}={given[name]!r}"
        )


class NamesElsewhere:
    """For a class whose constructor should say what an argument of another library is here."""

    # A name that people bring from elsewhere, and what to write instead.
    write_instead: ClassVar[dict[str, str]] = {}

    def __new__(cls, *args, **kwargs):
        """Python itself would only say that it knows no such argument."""
        check_names(cls, kwargs, cls.write_instead)
        return super().__new__(cls)
