"""Every step of every schedule up to its end equals Hugging Face's, by PyTorch's LambdaLR."""

import numpy as np
import pytest
import torch
import transformers

from keras_llm import schedules

PEAK = 3e-4
STEPS = 140

CASES = {
    "constant": (
        schedules.WarmupConstant(PEAK, 10),
        lambda o: transformers.get_constant_schedule_with_warmup(o, 10),
    ),
    "constant, no warm-up": (
        schedules.WarmupConstant(PEAK, 0),
        lambda o: transformers.get_constant_schedule_with_warmup(o, 0),
    ),
    "linear": (
        schedules.WarmupLinearDecay(PEAK, 10, 100),
        lambda o: transformers.get_linear_schedule_with_warmup(o, 10, 100),
    ),
    "linear, no warm-up": (
        schedules.WarmupLinearDecay(PEAK, 0, 100),
        lambda o: transformers.get_linear_schedule_with_warmup(o, 0, 100),
    ),
    "linear, warm-up only": (
        schedules.WarmupLinearDecay(PEAK, 100, 100),
        lambda o: transformers.get_linear_schedule_with_warmup(o, 100, 100),
    ),
    "cosine": (
        schedules.WarmupCosineDecay(PEAK, 10, 100),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, 10, 100),
    ),
    "cosine, no warm-up": (
        schedules.WarmupCosineDecay(PEAK, 0, 100),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, 0, 100),
    ),
    "cosine, min_ratio": (
        schedules.WarmupCosineDecay(PEAK, 10, 100, min_ratio=0.1),
        lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            o, 10, 100, min_lr_rate=0.1
        ),
    ),
    "inverse square root": (
        schedules.WarmupInverseSquareRoot(PEAK, 10),
        lambda o: transformers.get_inverse_sqrt_schedule(o, 10),
    ),
    "inverse square root, no warm-up": (
        schedules.WarmupInverseSquareRoot(PEAK, 0),
        lambda o: transformers.get_inverse_sqrt_schedule(o, 0),
    ),
    "inverse square root, timescale": (
        schedules.WarmupInverseSquareRoot(PEAK, 30, timescale=7),
        lambda o: transformers.get_inverse_sqrt_schedule(o, 30, timescale=7),
    ),
    **{
        f"warm-up, stable, {decay_type}, {min_ratio}": (
            schedules.WarmupStableDecay(PEAK, 10, 50, 40, decay_type, min_ratio),
            lambda o, decay_type=decay_type, min_ratio=min_ratio: transformers.get_wsd_schedule(
                o,
                num_warmup_steps=10,
                num_stable_steps=50,
                num_decay_steps=40,
                decay_type=decay_type,
                min_lr_ratio=min_ratio,
            ),
        )
        for decay_type in ("cosine", "linear", "1-sqrt")
        for min_ratio in (0.0, 0.1)
    },
    "warm-up, stable, no warm-up": (
        schedules.WarmupStableDecay(PEAK, 0, 50, 40),
        lambda o: transformers.get_wsd_schedule(
            o, num_warmup_steps=0, num_stable_steps=50, num_decay_steps=40
        ),
    ),
    "warm-up, stable, no plateau": (
        schedules.WarmupStableDecay(PEAK, 10, 0, 40),
        lambda o: transformers.get_wsd_schedule(
            o, num_warmup_steps=10, num_stable_steps=0, num_decay_steps=40
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.sampled(4)
def test_every_step_up_to_the_end(case):
    ours, theirs = CASES[case]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = theirs(optimizer)
    for step in range(STEPS if ours.total_steps is None else ours.total_steps + 1):
        rate = float(ours(step))
        np.testing.assert_allclose(
            rate, scheduler.get_last_lr()[0], rtol=1e-6, atol=1e-9 * PEAK, err_msg=f"step {step}"
        )
        optimizer.step()
        scheduler.step()
