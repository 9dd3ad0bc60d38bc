"""Who trains together with this process."""

import functools

import keras

from keras_llm.distribution.world import World

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
