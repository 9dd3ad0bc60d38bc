"""Each check speaks of its mistake, once a fit, and of nothing else."""

import warnings
from pydoc_data.topics import topics

import keras
import numpy as np
import pytest
from keras_llm.training.sanity import unfitting_predictions
from keras_llm.training.sanity_of_batch import Batch, batch_messages, unlikely_predictions

from keras_llm import data, losses, metrics, models, optimizers, schedules
from keras_llm.training import SanityWarning

VOCAB, PAD, LENGTH = 31, 0, 12
BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
# Documents of 3 to 13 tokens, none of them PAD; text, in that no token is like its neighbours.
DOCUMENTS = [RNG.permutation(np.arange(1, VOCAB))[:n] for n in (3, 5, 8, 13, 10, 4, 13, 7)]
FULL = np.stack([RNG.permutation(np.arange(1, VOCAB))[: LENGTH + 2] for _ in range(8)])


def padded(rows, side="right", fill=PAD):
    length = LENGTH + 1
    out = np.full((len(rows), length), fill)
    for row, ids in zip(out, rows, strict=True):
        row[slice(len(ids)) if side == "right" else slice(length - len(ids), None)] = ids
    return out


def causal(**kwargs):
    return models.CausalTransformer(VOCAB, 16, 1, 2, max_length=LENGTH, **kwargs)


def compiled(model, loss=None, optimizer=None, **kwargs):
    """What is tested is a warning, not the step, which TensorFlow would trace for each model."""
    loss = losses.MaskedSparseCategoricalCrossentropy(PAD) if loss is None else loss
    kwargs = {"run_eagerly": BACKEND == "tensorflow"} | kwargs
    model.compile(optimizer or optimizers.AdamW(1e-3), loss, **kwargs)
    return model


def sanity(action):
    """The sanity warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SanityWarning)
        action()
    return [str(warning.message) for warning in caught]


def of_fit(model, x, y, **kwargs):
    """Those of a fit of two epochs of two steps."""
    options = {"batch_size": (len(y) + 1) // 2, "epochs": 2, "verbose": 0, "shuffle": False}
    return sanity(lambda: model.fit(x, y, **options | kwargs))


def only(messages, start, guide):
    [message] = messages
    assert message.startswith(start)
    assert message.endswith(f"(examples/guides/{guide}.py)")
    assert "\n" not in message


# --- mistakes that compile sees ------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer, says",
    [
        (optimizers.AdamW(1.0), "The learning rate 1 is far outside"),
        (optimizers.AdamW(1e-8), "The learning rate 1e-08 is far outside"),
        (keras.optimizers.Adam(3.0), "The learning rate 3 is far outside"),
        (keras.optimizers.Lion(0.1), "The learning rate 0.1 is far outside"),
        (optimizers.AdamW(schedules.WarmupCosineDecay(0.5, 10, 100)), "The learning rate 0.5"),
        (keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.0, 9, 0.0, None, 1.0, 3)),
         "The learning rate 1 is"),
        (optimizers.Adafactor(1.0, relative_step=False, warmup_init=False), "The learning rate 1 "),
    ],
)  # fmt: skip
def test_a_learning_rate_far_from_all_others(optimizer, says):
    found = sanity(lambda: compiled(causal(), optimizer=optimizer))
    only(found, says, "4_adamw_and_adafactor")


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.AdamW(1e-2),
        optimizers.AdamW(2e-5),
        optimizers.AdamW(0.0),
        optimizers.AdamW(schedules.WarmupLinearDecay(5e-5, 500, 10_000)),
        optimizers.Adafactor(None, relative_step=True, scale_parameter=True, warmup_init=True),
        optimizers.Adafactor(1e-3, relative_step=False, warmup_init=False),
        keras.optimizers.SGD(1.0),
        "rmsprop",
    ],
)
def test_a_usual_learning_rate(optimizer):
    assert not sanity(lambda: compiled(causal(), optimizer=optimizer))


@pytest.mark.parametrize(
    "loss",
    [
        losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False),
        keras.losses.SparseCategoricalCrossentropy(),
        "sparse_categorical_crossentropy",
    ],
)
def test_from_logits_forgotten(loss):
    found = sanity(lambda: compiled(causal(), loss))
    only(found, "The model returns logits", "2_cross_entropy_and_masking")


@pytest.mark.parametrize(
    "head",
    [
        keras.layers.Dense(VOCAB, activation="softmax"),
        keras.Sequential([keras.layers.Dense(VOCAB), keras.layers.Softmax()]),
    ],
)
def test_a_softmax_in_the_head(head):
    def model():
        return models.LanguageModel(keras.layers.Embedding(VOCAB, 8), head)

    found = sanity(lambda: compiled(model()))
    only(found, "The model's predictions are softmaxed already", "2_cross_entropy_and_masking")
    right = losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False)
    assert not sanity(lambda: compiled(model(), right))
    assert not of_fit(compiled(model(), right), FULL[:, :LENGTH], FULL[:, 1:-1])


def test_a_metric_that_counts_what_the_loss_ignores():
    found = sanity(lambda: compiled(causal(), metrics=[metrics.Perplexity()]))
    only(found, "The loss ignores the label 0", "2_cross_entropy_and_masking")


# --- mistakes that the first batch shows ---------------------------------------------------------


class Softmaxed(models.LanguageModel):
    def call(self, inputs, training=None):
        return keras.ops.softmax(super().call(inputs, training=training))


def small(cls=models.LanguageModel):
    return cls(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))


# A compiled graph, as JAX and TensorFlow have, shows no predictions.
@pytest.mark.parametrize("run_eagerly", [pytest.param(False, marks=pytest.mark.torch_only), True])
def test_predictions_are_not_what_the_loss_takes_them_for(run_eagerly):
    x, y = FULL[:, :LENGTH], FULL[:, 1:-1]
    probabilities = losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False)
    model = compiled(small(Softmaxed), run_eagerly=run_eagerly)
    only(of_fit(model, x, y), "The model's predictions are soft", "2_cross_entropy_and_masking")
    assert not of_fit(compiled(small(Softmaxed), probabilities, run_eagerly=run_eagerly), x, y)
    # Not known at compile time: the head is not built.
    model = compiled(small(), probabilities, run_eagerly=run_eagerly)
    found = of_fit(model, x, y)
    assert any(message.startswith("The model returns logits") for message in found)


def test_logits_may_lie_between_0_and_1():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    assert unlikely_predictions(RNG.random((1, 8, VOCAB)), loss) is None
    assert unlikely_predictions(np.zeros((1, 8, VOCAB)), loss) is None
    assert unlikely_predictions(None, loss) is None
    assert unfitting_predictions(losses.MaskedSparseCategoricalCrossentropy(), None) is None
    assert unfitting_predictions(keras.losses.MeanSquaredError(), True) is None


def test_labels_that_are_not_shifted():
    ids = FULL[:, :LENGTH]
    found = of_fit(compiled(causal()), ids, ids)
    only(found, "The labels are not shifted", "6_the_training_loop")
    rows = padded(DOCUMENTS)[:, :-1]
    only(of_fit(compiled(causal()), rows, rows), "The labels are not", "6_the_training_loop")


def test_labels_that_are_shifted_twice():
    found = of_fit(compiled(causal()), FULL[:, :LENGTH], FULL[:, 2:])
    only(found, "The labels are shifted twice", "6_the_training_loop")


def seq2seq():
    return models.Seq2SeqTransformer(VOCAB, 16, 1, 2, max_length=16, dropout=0.0)


def test_a_decoder_that_reads_its_answer():
    rows = padded(DOCUMENTS)
    found = of_fit(compiled(seq2seq()), {"encoder_ids": rows, "decoder_ids": rows}, rows)
    only(found, "The labels are not shifted", "6_the_training_loop")


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_that_counts(side):
    rows = padded(DOCUMENTS, side, fill=7)
    found = of_fit(compiled(causal()), rows[:, :-1], rows[:, 1:], batch_size=8)
    only(found, "Padding seems to count: the label 7", "2_cross_entropy_and_masking")


def test_nothing_counts():
    x = FULL[:, :LENGTH]
    found = of_fit(compiled(causal()), x, np.zeros_like(x))
    only(found, "No label of the first batch counts", "2_cross_entropy_and_masking")
    found = of_fit(compiled(causal()), x, FULL[:, 1:-1], sample_weight=np.zeros(len(x)))
    only(found, "No label of the first batch counts", "2_cross_entropy_and_masking")


def test_ids_that_the_vocabulary_does_not_have():
    x, y = FULL[:, :LENGTH].copy(), FULL[:, 1:-1].copy()
    y[0, 0] = VOCAB
    model = compiled(causal(), run_eagerly=False)
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="Labels must be in"):
            model.fit(x, y, verbose=0)
    else:
        only(of_fit(model, x, y), "The first batch has the id 31", "1_what_compile_means")


def test_a_first_loss_that_is_too_large():
    model = compiled(causal(tie_embeddings=False))
    model.head.kernel.assign(model.head.kernel * 1e3)
    x, y = FULL[:, :LENGTH], FULL[:, 1:-1]
    only(of_fit(model, x, y), "The first loss is", "3_perplexity")
    # Not the first update any more.
    model.head.kernel.assign(model.head.kernel * 1e3)
    assert not of_fit(model, x, y)


@pytest.mark.parametrize("with_state", [True, False])
def test_a_schedule_that_has_ended(with_state, tmp_path):
    optimizer = optimizers.AdamW(schedules.WarmupLinearDecay(1e-3, 1, total_steps=4))
    model, x, y = with_optimizer(optimizer)
    # The first updates, and all of a schedule, are nobody's mistake.
    assert not of_fit(model, x, y)
    if with_state:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    before = model.get_weights()
    only(of_fit(model, x, y), "The learning rate is 0 after 4 updates", "4_adamw_and_adafactor")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    optimizer = optimizers.AdamW(schedules.WarmupLinearDecay(1e-3, 1, total_steps=4))
    assert not of_fit(compiled(model, optimizer=optimizer), x, y)
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


# --- no mistakes ---------------------------------------------------------------------------------


def text():
    texts = [topics[name] for name in sorted(topics)[:20]]
    tokenizer = data.train_tokenizer(texts, unit="character")
    texts = [text[:200] for text in texts[:4]]
    batches = data.causal_lm(texts, tokenizer, seq_len=LENGTH, batch_size=8)
    loss = losses.MaskedSparseCategoricalCrossentropy(tokenizer.pad_id)
    model = models.CausalTransformer(tokenizer.vocab_size, 16, 1, 2, max_length=LENGTH)
    return compiled(model, loss), batches, None


def packed():
    stream = np.concatenate(DOCUMENTS)[: 4 * LENGTH + 1]
    return compiled(causal()), stream[:-1].reshape(4, -1), stream[1:].reshape(4, -1)


def padded_on_the(side):
    rows = padded(DOCUMENTS, side)
    labels = np.where(rows[:, :-1] == PAD, PAD, rows[:, 1:])
    return compiled(causal(pad_id=PAD)), rows[:, :-1], labels


def minus_100():
    _, x, y = padded_on_the("right")
    loss = losses.MaskedSparseCategoricalCrossentropy()
    return compiled(causal(), loss), x, np.where(y == PAD, -100, y)


def teacher_forcing(sources=None):
    targets = padded(DOCUMENTS)
    sources = targets[::-1] if sources is None else sources
    decoder_ids, labels = data.teacher_forcing(targets, start_id=1)
    return compiled(seq2seq()), {"encoder_ids": sources, "decoder_ids": decoder_ids}, labels


def pretrained():
    model, x, y = packed()
    model.fit(x, y, verbose=0, epochs=20)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    return compiled(again), x, y


def with_loss(loss):
    return compiled(causal(), loss), FULL[:, :LENGTH], FULL[:, 1:-1]


def with_optimizer(optimizer):
    return compiled(causal(), optimizer=optimizer), FULL[:, :LENGTH], FULL[:, 1:-1]


def in_half_precision():
    return compiled(causal(dtype="mixed_bfloat16")), FULL[:, :LENGTH], FULL[:, 1:-1]


def one_token_over_and_over():
    ids = np.full((8, LENGTH), 5)
    return compiled(causal()), ids, ids


def runs():
    ids = np.repeat(RNG.permutation(np.arange(1, VOCAB))[:8].reshape(4, 2), 25, axis=1)[:, :13]
    ids = np.concatenate([ids, np.repeat(RNG.integers(1, VOCAB, (4, 1)), 13, axis=1)])
    return compiled(causal()), ids[:, :-1], ids[:, 1:]


def an_autoencoder():
    # Not causal: a masked language model is asked for the ids that it reads.
    backbone = keras.Sequential(
        [keras.layers.Embedding(VOCAB, 8), keras.layers.Bidirectional(
            keras.layers.SimpleRNN(8, return_sequences=True))]
    )  # fmt: skip
    model = models.LanguageModel(backbone, keras.layers.Dense(VOCAB))
    return compiled(model), FULL[:, :LENGTH], FULL[:, :LENGTH]


def keras_masked():
    rows = padded(DOCUMENTS)
    backbone = keras.layers.Embedding(VOCAB, 8, mask_zero=True)
    model = models.LanguageModel(backbone, keras.layers.Dense(VOCAB))
    loss = losses.MaskedSparseCategoricalCrossentropy()
    return compiled(model, loss), rows[:, :-1], np.where(rows[:, :-1] == 0, 0, rows[:, 1:])


def weighted():
    _, x, y = padded_on_the("right")
    model = compiled(causal(), losses.MaskedSparseCategoricalCrossentropy())
    return model, keras_dataset(x, y, (y != PAD).astype("float32")), None


def keras_dataset(*arrays):
    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return tuple(array[4 * index : 4 * index + 4] for array in arrays)

    return Rows()


def plain():
    model = keras.Sequential([keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB)])
    return compiled(model), FULL[:, :LENGTH], FULL[:, 1:-1]


SETUPS = {
    "text": text,
    "packed": packed,
    "padded right": lambda: padded_on_the("right"),
    "padded left": lambda: padded_on_the("left"),
    "ignored -100": minus_100,
    "teacher forcing": teacher_forcing,
    "copy task": lambda: teacher_forcing(padded(DOCUMENTS)),
    "pretrained": pretrained,
    "focal": lambda: with_loss(losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, PAD)),
    "smoothed": lambda: with_loss(losses.MaskedSparseCategoricalCrossentropy(PAD, 0.1, 1e-4)),
    "summed": lambda: with_loss(losses.MaskedSparseCategoricalCrossentropy(reduction="sum")),
    "stock loss": lambda: with_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "adafactor": lambda: with_optimizer(optimizers.Adafactor(None, relative_step=True)),
    "half precision": in_half_precision,
    "one token": one_token_over_and_over,
    "runs": runs,
    "autoencoder": an_autoencoder,
    "mask_zero": keras_masked,
    "weights": weighted,
    "one row": lambda: (compiled(causal()), FULL[:1, :LENGTH], FULL[:1, 1:-1]),
    "one token a row": lambda: (compiled(causal()), FULL[:, :1], FULL[:, :1]),
    "plain": plain,
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_right_set_up_is_left_in_peace(name):
    def action():
        model, x, y = SETUPS[name]()
        options = {} if y is None else {"batch_size": 4}
        model.fit(x, y, epochs=2, verbose=0, **options)

    assert not sanity(action)


def test_numbers_random_state_and_batches_are_the_same_without_a_look(monkeypatch):
    def trained():
        keras.utils.set_random_seed(3)
        model = compiled(causal(dropout=0.5))
        batches = keras_dataset(FULL[:, :LENGTH], FULL[:, 1:-1])
        model.fit(batches, epochs=2, verbose=0)
        return model.get_weights(), float(keras.random.uniform(()))

    weights, draw = trained()
    monkeypatch.setattr("keras_llm.training.first_batch.FirstBatch.on_train_begin", lambda *_: 0)
    others, other_draw = trained()
    assert draw == other_draw
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.torch_only
def test_a_data_loader_hands_out_no_batch_more():
    tokenizer = data.train_tokenizer(["ab cd ef gh"] * 50, unit="character")
    texts = ["ab cd ef gh"] * 50
    loader = data.causal_lm(texts, tokenizer, seq_len=LENGTH, batch_size=8)
    model = models.CausalTransformer(tokenizer.vocab_size, 16, 1, 2, max_length=LENGTH)
    seen = []
    model = compiled(model, losses.MaskedSparseCategoricalCrossentropy(tokenizer.pad_id))
    step = model.train_step
    model.train_step = lambda batch: seen.append(batch) or step(batch)
    model.fit(loader, verbose=0)
    assert len(seen) == len(loader)


def test_the_step_is_given_back_whatever_happens():
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise RuntimeError("no")

    model = compiled(causal())
    x, y = FULL[:, :LENGTH], FULL[:, :LENGTH]
    with pytest.raises(RuntimeError):
        model.fit(x, y, verbose=0, callbacks=[Stop()])
    assert len(of_fit(model, x, y)) == 1
    assert len(of_fit(model, x, y)) == 1
    assert model.first_batch is None


def test_a_loss_of_ones_own_making_is_nobodys_business():
    class Own(models.LanguageModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(y_pred)

    x = FULL[:, :LENGTH]
    assert not of_fit(compiled(small(Own)), x, np.zeros_like(x))


def test_evidence_has_to_be_overwhelming():
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    counts = np.ones_like(ids, bool)
    assert batch_messages(Batch(ids, ids, counts), 10, False)
    # Seven tokens with a next one; two different ones; half of them ignored; another model.
    assert not batch_messages(Batch(ids[:, 1:], ids[:, 1:], counts[:, 1:]), 10, False)
    assert not batch_messages(Batch(ids % 2, ids % 2, counts), 10, False)
    assert not batch_messages(Batch(ids, ids, counts & (ids > 3)), 10, False)
    assert not batch_messages(Batch(None, ids, counts), 10, False)
