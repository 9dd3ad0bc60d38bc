"""Methods of a model that need all of its weights."""

import functools


def with_whole_weights(method):
    """A method in which each process has all weights: see `keras_llm.distribute`.

    It matters in the middle of a `fit` of several processes that divide the weights. All of them
    call the method.
    """

    @functools.wraps(method)
    def called(model, *arguments, **named):
        if model.step is None:
            return method(model, *arguments, **named)
        with model.step.whole_weights():
            return method(model, *arguments, **named)

    return called
