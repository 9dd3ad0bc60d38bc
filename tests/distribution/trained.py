"""What is trained by one process, or by several under torchrun, and compared: prints JSON.

    python trained.py OUT [name ...]
    torchrun --nproc-per-node=2 trained.py OUT [name ...]

Each process writes OUT.rank. Nothing here knows how many processes there are.
"""

import json
import sys
import warnings

import keras_llm  # isort: skip
import keras
import numpy as np

from keras_llm import data, losses, metrics, models, optimizers, schedules

RNG = np.random.default_rng(0)
WORDS = [" ".join(RNG.choice(list("abcdefg"), RNG.integers(2, 15))) for _ in range(31)]
VOCAB, LENGTH, ROWS = 23, 9, 16
X = RNG.integers(1, VOCAB, (ROWS, LENGTH)).astype("int32")
Y = RNG.integers(1, VOCAB, (ROWS, LENGTH)).astype("int32")
# Rows with as few tokens as one: a mean of means would show.
Y[np.arange(LENGTH) > np.arange(ROWS)[:, None] % LENGTH] = 0
WEIGHTS = RNG.uniform(0.2, 2.0, (ROWS, LENGTH)).astype("float32")


def causal(vocab_size=VOCAB, **settings):
    keras.utils.set_random_seed(3)
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "max_length": 24}
    return models.CausalTransformer(vocab_size, **sizes, **settings)


def adamw(**settings):
    return optimizers.AdamW(1e-2, epsilon=1e-3, global_clipnorm=1.0, **settings)


def loss(**settings):
    return losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, **settings)


def numbers(model, *histories, **more):
    """What is compared: all logs but those of a clock, and the weights."""
    logs = [
        {k: np.asarray(v, "float64").tolist() for k, v in h.history.items() if "second" not in k}
        for h in histories
    ]
    weights = [np.asarray(w, "float64") for w in model.get_weights()]
    sums = [float(np.abs(w).sum()) for w in weights]
    first = weights[0].reshape(-1)[:20].tolist()
    return {"logs": logs, "sums": sums, "first": first, **more}


def documents():
    tokenizer = data.train_tokenizer(WORDS, unit="word")
    options = {"seq_len": 16, "pack": False}
    train = data.causal_lm(WORDS, tokenizer, batch_size=6, shuffle=True, seed=0, **options)
    valid = data.causal_lm(WORDS[:9], tokenizer, batch_size=4, **options)
    model = causal(tokenizer.vocab_size)
    model.compile(
        adamw(weight_decay=0.1), loss(label_smoothing=0.1), metrics=[metrics.Perplexity()]
    )
    history = model.fit(train, validation_data=valid, epochs=2, verbose=0)
    points = [(p["step"], p["loss"], p["tokens"], p["gradient_norm"]) for p in history.steps]
    ids = model.generate(tokenizer.encode("a b"), max_new_tokens=5).tolist()
    return numbers(model, history, points=points, ids=ids)


def packed():
    tokenizer = data.train_tokenizer(WORDS, unit="word")
    train = data.causal_lm(WORDS, tokenizer, seq_len=12, batch_size=5, num_workers=1)
    model = causal(tokenizer.vocab_size, document_end_id=tokenizer.end_id)
    model.compile(adamw(), loss(), metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()])
    return numbers(model, model.fit(train, epochs=2, verbose=0))


def arrays():
    model = causal()
    schedule = schedules.WarmupCosineDecay(0.5, warmup_steps=2, total_steps=6)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        loss(),
        weighted_metrics=[metrics.Perplexity()],
    )
    fit = {"sample_weight": WEIGHTS, "batch_size": 7, "epochs": 2, "verbose": 0}
    history = model.fit(X, Y, validation_split=0.2, **fit)
    results = model.evaluate(X, Y, batch_size=3, verbose=0)
    predicted = float(np.abs(model.predict(X, batch_size=5, verbose=0)).sum())
    return numbers(model, history, results=results, predicted=predicted)


def accumulation():
    model = causal()
    optimizer = optimizers.Adafactor(gradient_accumulation_steps=3, scale_parameter=True)
    model.compile(optimizer, loss(), metrics=[metrics.Perplexity()], micro_batch_size=2)
    fit = {"batch_size": 3, "epochs": 2, "verbose": 0, "class_weight": {3: 0.2, 5: 4.0}}
    return numbers(model, model.fit(X, Y, **fit))


def logits():
    """Metrics that read logits, a metric of Keras among them."""
    model = causal()
    of_keras = keras.metrics.SparseCategoricalAccuracy()
    model.compile(adamw(), loss(), metrics=[metrics.MaskedTokenAccuracy(top_k=2), of_keras])
    return numbers(model, model.fit(X, Y, batch_size=5, epochs=2, verbose=0))


def sums():
    model = causal()
    model.compile(keras.optimizers.SGD(1e-2), loss(reduction="sum"), micro_batch_size="auto")
    return numbers(model, model.fit(X, Y, batch_size=5, epochs=2, verbose=0))


def seq2seq():
    pairs = [(text, text[::-1]) for text in WORDS]
    tokenizer = data.train_tokenizer(WORDS, unit="word")
    train = data.seq2seq(pairs, tokenizer, tokenizer, batch_size=7, shuffle=True)
    keras.utils.set_random_seed(3)
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    model = models.Seq2SeqTransformer(tokenizer.vocab_size, **sizes)
    model.compile(adamw(), loss(), metrics=[metrics.Perplexity()])
    return numbers(model, model.fit(train, epochs=2, verbose=0))


def gpt2():
    import transformers

    keras.utils.set_random_seed(3)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        bos_token_id=1,
        eos_token_id=2,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        resid_pdrop=0.0,
    )
    config.embd_pdrop = config.attn_pdrop = 0.0
    model = models.from_transformers(transformers.GPT2LMHeadModel(config))
    model.compile(adamw(gradient_accumulation_steps=2), loss(), metrics=[metrics.Perplexity()])
    model.backbone.trainable = True
    return numbers(model, model.fit(X, Y, batch_size=5, epochs=2, verbose=0))


def frozen():
    """A part that is not trained, and then is; by steps; a generator; a callback that ends it."""
    model = causal(tie_embeddings=False)
    model.compile(adamw(), loss(), jit_compile=False)
    model.backbone.trainable = False
    first = model.fit(X, Y, batch_size=6, steps=4, verbose=0)
    model.backbone.trainable = True
    model.compile(adamw(), loss())
    batches = ((X[i : i + 5], Y[i : i + 5]) for i in (0, 5, 10, 15))
    second = model.fit(batches, verbose=0)
    stop = keras.callbacks.EarlyStopping("loss", patience=0, mode="max")
    third = model.fit(X, Y, batch_size=16, epochs=5, verbose=0, callbacks=[stop])
    return numbers(model, first, second, third)


def by_hand():
    """A loop over `train_on_batch`; the loader's batches are whole."""
    tokenizer = data.train_tokenizer(WORDS, unit="word")
    loader = data.causal_lm(WORDS, tokenizer, seq_len=16, batch_size=6, pack=False)
    model = causal(tokenizer.vocab_size)
    model.compile(adamw(), loss(), metrics=[metrics.Perplexity()])
    logs = [model.train_on_batch(x, y) for x, y in loader]
    logs += [model.test_on_batch(x, y) for x, y in loader]
    return numbers(model, logs_by_hand=np.array(logs, "float64").tolist())


def not_finite():
    """A batch whose loss is NaN in one row is skipped by all; the log leaves its rows out."""
    model = causal()
    model.compile(adamw(), loss(), weighted_metrics=[metrics.Perplexity()])
    weights = np.ones((12, LENGTH), "float32")
    weights[4:8] = np.inf
    # More than are told one by one.
    starts = (0, 4, 4, 4, 4, 4, 8)
    batches = [(X[i : i + 4], Y[i : i + 4], weights[i : i + 4]) for i in starts]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit((batch for batch in batches), verbose=0)
    told = [str(w.message) for w in caught if "skipped" in str(w.message)]
    result = numbers(model, updates=int(model.optimizer.iterations))
    return result | {"told": len(told) if keras_llm.distribution.world().is_first else 3}


def by_hand_not_finite():
    """`train_on_batch` tells once, in the first process, what only the second one has seen."""
    model = causal()
    model.compile(adamw(), loss(), weighted_metrics=[metrics.Perplexity()])
    weights = np.ones((6, LENGTH), "float32")
    too_large = weights.copy()
    # Finite, as a sum of losses is not. Of two processes the second has this row.
    too_large[1] = 3e38
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in (weights, too_large, too_large, weights):
            model.train_on_batch(X[:6], Y[:6], each)
    told = [str(w.message) for w in caught if "skipped an update" in str(w.message)]
    is_first = keras_llm.distribution.world().is_first
    assert len(told) == is_first
    assert all("The first value that is not finite is the loss." in message for message in told)
    return numbers(model, updates=int(model.optimizer.iterations))


def nothing_trained():
    """Batches are counted only; of the last one a process has no rows."""
    model = causal()
    model.compile(adamw(), loss(), metrics=[metrics.Perplexity()])
    model.trainable = False
    return numbers(model, model.fit(X[:5], Y[:5], batch_size=2, verbose=0))


def keras_3_16():
    """Where Keras would wrap the model for data parallel training of its own."""
    trainer = next(c for c in keras.Model.__mro__ if c.__name__ == "TorchTrainer")
    before = {name: vars(trainer).get(name) for name in ("make_train_function", "_initialize_ddp")}

    def initialize(self):
        raise AssertionError("Keras would train a copy of the model")

    def make(self, force=False):
        self._initialize_ddp()
        return before["make_train_function"](self, force)

    trainer.make_train_function, trainer._initialize_ddp = make, initialize
    try:
        model = causal()
        model.compile(adamw(), loss())
        return numbers(model, model.fit(X, Y, batch_size=5, verbose=0))
    finally:
        trainer.make_train_function = before["make_train_function"]
        if before["_initialize_ddp"] is None:
            del trainer._initialize_ddp
        else:
            trainer._initialize_ddp = before["_initialize_ddp"]


EVERY = [documents, packed, arrays, accumulation, logits, sums, seq2seq, gpt2, frozen, by_hand]
RUNS = {
    run.__name__: run
    for run in [*EVERY, not_finite, by_hand_not_finite, nothing_trained, keras_3_16]
}


def main():
    out, *names = sys.argv[1:]
    warnings.simplefilter("ignore")
    results = {name: RUNS[name]() for name in names or RUNS}
    rank = keras_llm.distribution.world().rank
    with open(f"{out}.{rank}", "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
