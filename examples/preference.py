"""Preference tuning (DPO) by the same step: weights of either sign, by pairs of answers.

A model learns to sort four digits, half of the answers upwards and half of them downwards. Then it
is told which of two answers is preferred. Direct preference optimisation (Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290) minimises, for a chosen answer c and a rejected one r,

    loss = -log(sigmoid(d))        d = beta * ((log p(c) - log p_0(c)) - (log p(r) - log p_0(r)))

with p_0 the model as it was before. The derivative of the loss by log p(c) is -beta * sigmoid(-d),
that by log p(r) the same with the other sign. So an update is one of the cross entropy with these
numbers as weights: `reduction="sum"` takes weights of either sign.
"""

import argparse

import keras_llm  # noqa: F401  isort: skip  (chooses PyTorch, unless KERAS_BACKEND says otherwise)
import keras
import numpy as np

from keras_llm import losses, models, optimizers, schedules

DIGITS, ANSWER, END, IGNORED = 10, 10, 11, -100
LENGTH = 4


def main():
    args = arguments()
    keras.utils.set_random_seed(0)
    drawn = np.random.default_rng(0)
    model = models.CausalTransformer(END + 1, args.d_model, 2, num_heads=4, max_length=16)

    rate = schedules.WarmupCosineDecay(3e-3, 100, args.steps)
    model.compile(
        optimizers.AdamW(rate, global_clipnorm=1.0), losses.MaskedSparseCategoricalCrossentropy()
    )
    prompts = some_prompts(drawn, 64 * args.steps)
    x, y = rows(prompts, upwards=drawn.random(len(prompts)) < 0.5)
    model.fit(x, y, batch_size=64, verbose=args.verbose)
    print("upwards before: {:.0%}, downwards: {:.0%}".format(*shares(model)))

    # Chosen and rejected answers by turns.
    pairs = some_prompts(drawn, 32 * args.updates)
    x, y = rows(np.repeat(pairs, 2, axis=0), upwards=np.arange(2 * len(pairs)) % 2 == 0)
    # Those of p_0 do not change: they are computed once.
    reference = np.concatenate([log_probabilities(model, *part) for part in parts(x, y)])
    model.compile(
        optimizers.AdamW(1e-4), losses.MaskedSparseCategoricalCrossentropy(reduction="sum")
    )
    for update, part in enumerate(parts(x, y, reference)):
        loss, preferred = preference_step(model, *part, beta=args.beta)
        if update % 10 == 0:
            print(f"update {update}: loss {loss:.3f}, the chosen answer preferred {preferred:.0%}")
    print("upwards after: {:.0%}, downwards: {:.0%}".format(*shares(model)))


def preference_step(model, x, y, reference, beta):
    """An update by pairs of rows, a chosen one and a rejected one by turns.

    Args:
        model: Compiled with a cross entropy of `reduction="sum"`, and without dropout.
        x, y: Ids and labels; those of the prompts are ignored.
        reference: `log_probabilities` of the rows by the model before its tuning.
        beta: How much the model is held to what it was.

    Returns:
        The mean loss of the pairs before the update, and the share of them with d > 0.
    """
    chosen, rejected = np.reshape(log_probabilities(model, x, y) - reference, (-1, 2)).T
    d = beta * (chosen - rejected)
    weights = beta / (1 + np.exp(d)) / len(d)
    model.train_on_batch(x, y, sample_weight=np.stack([weights, -weights], axis=1).ravel())
    return np.logaddexp(0, -d).mean(), np.mean(d > 0)


def log_probabilities(model, x, y):
    """Of each row, the sum of the log-probabilities of its labels."""
    nll = losses.MaskedSparseCategoricalCrossentropy(reduction="none")
    return -keras.ops.convert_to_numpy(nll(y, model.predict_on_batch(x))).sum(axis=-1)


def parts(*arrays, size=64):
    """Batches of so many rows."""
    return zip(*(np.split(a, range(size, len(a), size)) for a in arrays), strict=True)


def some_prompts(drawn, count):
    """Rows of different digits."""
    return drawn.permuted(np.tile(np.arange(DIGITS), (count, 1)), axis=1)[:, :LENGTH]


def rows(prompts, upwards):
    """Ids `digits ANSWER sorted digits END`, and labels for the answers."""
    answers = np.sort(prompts, axis=1)
    answers = np.where(upwards[:, None], answers, answers[:, ::-1])
    marks = np.full((len(prompts), 1), ANSWER), np.full((len(prompts), 1), END)
    ids = np.concatenate([prompts, marks[0], answers, marks[1]], axis=1)
    labels = ids[:, 1:].copy()
    labels[:, :LENGTH] = IGNORED
    return ids[:, :-1], labels


def shares(model):
    """How many of 500 drawn answers are sorted upwards, and how many downwards."""
    prompts = some_prompts(np.random.default_rng(1), 500)
    asked = np.concatenate([prompts, np.full((len(prompts), 1), ANSWER)], axis=1)
    made = model.generate(asked, max_new_tokens=LENGTH, temperature=1.0, seed=0)[:, LENGTH + 1 :]
    answers = np.sort(prompts, axis=1)
    return [np.mean((made == each).all(axis=1)) for each in (answers, answers[:, ::-1])]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--verbose", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
