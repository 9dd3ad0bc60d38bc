"""Who trains together with this process."""

import functools

import keras

from keras_llm.distribution.base import World

ALONE = World()


def world() -> World:
    """The processes that train one model with this one."""
    if keras.backend.backend() != "torch":
        return ALONE
    from keras_llm.distribution.torch.process_group import current

    return current() or ALONE


def join_the_others() -> None:
    """Joins the processes that a launcher has started with this one, if one has."""
    if keras.backend.backend() == "torch":
        from keras_llm.distribution.torch import launcher

        launcher.join_the_others()


def by_all_processes(method):
    """A method that all processes call: if it fails in one, the others do not wait for it."""

    @functools.wraps(method)
    def called(*arguments, **named):
        with world().together():
            return method(*arguments, **named)

    return called


def by_first_process(method):
    """A method whose first argument is what it writes: the first process does, the others wait.

    It may be called by the first process alone; then nobody waits.
    """

    @functools.wraps(method)
    def called(self, *arguments, **named):
        written = next(iter((*arguments, *named.values())), "")
        with world().first_alone(f"{method.__qualname__} {written}"):
            if world().is_first:
                method(self, *arguments, **named)

    return called
