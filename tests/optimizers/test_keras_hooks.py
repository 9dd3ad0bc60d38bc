"""The private names that `keras_llm.optimizers.optimizer` leans on: each test says what broke."""

import keras
import numpy as np
import pytest

from keras_llm import optimizers
from tests.optimizers.updates import assert_close, gradients, updated

WHAT_BREAKS = {
    "_apply_weight_decay": "Keras decays too, by another rule: weight decay is applied twice",
    "_update_model_variables_moving_average": "the EMA of bfloat16 variables is imprecise",
    "_overwrite_model_variables_with_average_value": "on TensorFlow, EMA needs float32 variables",
    "_clip_gradients": "clipping takes Keras's slower way, and norms of bfloat16 are bfloat16",
    "_backend_update_step": "updates take the slow way on PyTorch, one variable at a time",
}


@pytest.mark.parametrize("hook", WHAT_BREAKS)
def test_keras_calls_the_hooks_that_we_override(hook, monkeypatch):
    calls = []
    ours = getattr(optimizers.AdamW, hook)

    def recorded(self, *args):
        calls.append(hook)
        return ours(self, *args)

    monkeypatch.setattr(optimizers.AdamW, hook, recorded)
    optimizer = optimizers.AdamW(global_clipnorm=1.0, use_ema=True)
    variable = keras.Variable(np.ones((2, 2), "float32"))
    optimizer.apply([keras.ops.ones((2, 2))], [variable])
    optimizer.finalize_variable_values([variable])
    assert calls == [hook], f"Keras no longer calls {hook}. What follows: {WHAT_BREAKS[hook]}."


def test_the_schedule_is_where_we_look_for_it():
    schedule = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
    assert optimizers.AdamW(schedule)._learning_rate is schedule, (
        "Keras keeps schedules elsewhere now: with gradient accumulation they count micro-steps"
    )


@pytest.mark.torch_only
def test_without_pytorchs_fused_kernel_updates_are_the_same(monkeypatch):
    from keras_llm.backend.torch import fused_adamw

    assert fused_adamw.kernel is not None, "torch._fused_adamw_ is gone: AdamW is ten times slower"
    fused = updated(optimizers.AdamW(0.01), gradients())
    monkeypatch.setattr(fused_adamw, "kernel", None)
    assert_close(updated(optimizers.AdamW(0.01), gradients()), fused, atol=2e-6)
