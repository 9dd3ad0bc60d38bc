"""The page about models from outside: the messages in its table of `from_keras_hub`."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_llm import losses, models
from tests.models import keras_hub_tasks as tasks
from tests.refusals import assert_complete, assert_raised, raised, table

pytestmark = pytest.mark.backend_free
hub = tasks.import_keras_hub()
TABLE = table("What `from_keras_hub` refuses")


def wrap(make):
    return lambda: models.from_keras_hub(make())


def bert():
    return hub.models.BertBackbone(9, 1, 2, 8, 8)


def of_several_tasks():
    class TinyBackbone(hub.models.Backbone):
        def __init__(self):
            ids = keras.Input((None,), dtype="int32")
            super().__init__(ids, keras.layers.Embedding(9, 4)(ids))

    class FirstLM(hub.models.CausalLM):
        backbone_cls = TinyBackbone

    class SecondLM(hub.models.CausalLM):
        backbone_cls = TinyBackbone

    made = TinyBackbone()
    made.tasks = FirstLM, SecondLM  # which would be forgotten otherwise
    return made


def two_heads(backbone, hidden):
    return keras.layers.Add()([keras.layers.Dense(9)(hidden), keras.layers.Dense(9)(hidden)])


def fit(task, change, *labels):
    """Calls `fit` with inputs that something was done to."""

    def call():
        model = models.from_keras_hub(task())
        model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
        model.fit(change(np.full((2, 8), 3)), *labels, verbose=0)

    return call


def gpt2():
    return tasks.task("gpt2")


def without_its_package():
    task = tasks.task_with_preprocessor()

    def call(*arguments, **named):
        raise ImportError("GPT2Tokenizer requires tensorflow.")

    task.preprocessor.call = call
    return task


def unsaved():
    model = models.from_keras_hub(tasks.own_task(lambda _, hidden: keras.layers.Dense(9)(hidden)))
    model.task.get_config = lambda: 1 / 0
    model.get_config()


def masked(ids):
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


LABELS = np.full((2, 8), 4)
REFUSED = {
    "no model of KerasHub": wrap(keras.Sequential),
    "a task that is no language model": wrap(
        lambda: hub.models.BertTextClassifier(bert(), num_classes=2)
    ),
    "a backbone that is in no language model": wrap(bert),
    "a backbone that is in several": wrap(of_several_tasks),
    "a task whose end is no layer of hidden vectors": wrap(lambda: tasks.own_task(two_heads)),
    "a dictionary that lacks something": fit(gpt2, lambda ids: {"token_ids": ids}, LABELS),
    "an id outside the vocabulary": fit(gpt2, lambda ids: masked(ids + 90), LABELS),
    "ids that are no integers": fit(gpt2, lambda ids: masked(ids * 1.0), LABELS),
    "texts for a task without a preprocessor": fit(gpt2, lambda ids: ["some text"]),
    "texts that its preprocessor cannot read": fit(without_its_package, lambda ids: ["ab"]),
    "texts and labels": fit(tasks.task_with_preprocessor, lambda ids: ["ab"], LABELS),
    "a task that KerasHub cannot save": unsaved,
}
NOT_INSTALLED = "KerasHub is not installed"


def test_the_table_has_all_that_is_tested_here():
    assert set(TABLE) == {*REFUSED, NOT_INSTALLED}


@pytest.mark.parametrize("what", REFUSED)
def test_the_table_has_the_messages_as_raised(what):
    assert_raised(TABLE[what], REFUSED[what])


def test_the_message_without_keras_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub.models", None)
    assert raised(lambda: models.from_keras_hub(None)) == TABLE[NOT_INSTALLED]


def test_no_message_is_missing_in_the_table():
    folder = Path(models.__file__).parent
    assert_complete(TABLE, [*folder.glob("*keras_hub*.py")], at_least=10)
