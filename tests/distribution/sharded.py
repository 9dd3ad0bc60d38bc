"""Trains small models; torchrun starts this with several processes, and one process is the truth.

Arguments: what is divided, a folder for results, then the names of cases, or none for all.
"""

import functools
import os
import sys
from pathlib import Path

import keras
import numpy as np
import torch
import torch.distributed as dist
import transformers

import keras_llm
from keras_llm import losses, metrics, models, optimizers
from keras_llm.distribution import sharded, world
from keras_llm.training.torch.owners import Owners
from keras_llm.training.torch.parameter_blocks import Block

VOCAB, ROWS, LENGTH, BATCH = 23, 9, 6, 4


def rows(seed=0):
    """Rows of unequal numbers of tokens; the last batch has one row, fewer than processes."""
    drawn = np.random.default_rng(seed)
    x = drawn.integers(1, VOCAB, (ROWS, LENGTH))
    y = drawn.integers(1, VOCAB, (ROWS, LENGTH))
    lengths = drawn.integers(1, LENGTH + 1, ROWS)
    y[np.arange(LENGTH) >= lengths[:, None]] = -100
    return x, y


def transformer(num_layers=2, **settings):
    sizes = {"vocab_size": VOCAB, "d_model": 16, "num_layers": num_layers, "num_heads": 2}
    return models.CausalTransformer(**sizes, max_length=16, **settings)


def outside(name):
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCAB, "num_attention_heads": 2, "num_hidden_layers": 2}
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2)
    else:
        config = transformers.LlamaConfig(
            **sizes, hidden_size=16, intermediate_size=24, pad_token_id=0
        )
    for kind in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, kind):
            setattr(config, kind, 0.0)
    return models.from_transformers(transformers.AutoModelForCausalLM.from_config(config))


def few_variables():
    """Two variables: with four processes two own nothing."""
    return models.LanguageModel(
        keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB, use_bias=False)
    )


def compiled(model, optimizer, smoothing=0.0, **settings):
    model.compile(
        optimizer,
        losses.MaskedSparseCategoricalCrossentropy(label_smoothing=smoothing),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()],
        **settings,
    )
    return model


class Freezes(keras.callbacks.Callback):
    """Freezes the first block after the first epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.backbone.blocks[0].trainable = False


class Spoils(keras.callbacks.Callback):
    """Makes the gradient of the second batch NaN."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            self.before = self.model.get_weights()
            self.model.set_weights([w * np.float32("nan") for w in self.before])

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.model.set_weights(self.before)


class Asks(keras.callbacks.Callback):
    """Calls in the middle of training what needs all weights; all processes do."""

    asked = ()

    def on_train_begin(self, logs=None):
        self.asked = []

    def on_train_batch_end(self, batch, logs=None):
        size = sum(float(np.abs(w).sum()) for w in self.model.get_weights())
        ids = self.model.generate([1, 2, 3], max_new_tokens=4)
        logits = self.model.predict(np.array([[1, 2, 3]]), verbose=0)
        self.asked.append([size, *ids, float(np.abs(logits).sum())])


def adamw(**settings):
    return optimizers.AdamW(1e-2, weight_decay=0.1, epsilon=1e-3, **settings)


def adafactor():
    return optimizers.Adafactor(1e-2, relative_step=False, epsilon_1=1e-3, beta_1=0.9)


def summed():
    model = transformer()
    loss = losses.MaskedSparseCategoricalCrossentropy(reduction="sum")
    model.compile(keras.optimizers.SGD(0.1, 0.9, global_clipnorm=0.05), loss)
    return model


def frozen():
    model = transformer()
    model.backbone.token_embedding.trainable = False
    return compiled(model, keras.optimizers.Adam(1e-2, epsilon=1e-3))


CASES = {
    "adamw": lambda: compiled(transformer(4, tie_embeddings=False), adamw(global_clipnorm=0.05)),
    "adafactor, tied": lambda: compiled(transformer(tie_embeddings=True), adafactor(), 0.1),
    "clipped by keras": summed,
    "accumulated": lambda: compiled(
        transformer(),
        adamw(gradient_accumulation_steps=2, global_clipnorm=0.05),
        micro_batch_size=1,
    ),
    "frozen": frozen,
    "spoiled": lambda: compiled(transformer(), optimizers.Adafactor(epsilon_1=1e-3)),
    "few variables": lambda: compiled(few_variables(), adamw(global_clipnorm=0.05)),
    "gpt2": lambda: compiled(outside("gpt2"), adamw(global_clipnorm=0.05)),
    "llama": lambda: compiled(outside("llama"), adafactor()),
    "asked": lambda: compiled(transformer(), adamw()),
    "restored": lambda: compiled(transformer(), adamw(global_clipnorm=0.05)),
    "saved": lambda: compiled(transformer(), adamw(global_clipnorm=0.05)),
    "mixed": lambda: compiled(
        transformer(4, tie_embeddings=False, dtype="mixed_bfloat16"), adamw(global_clipnorm=0.05)
    ),
}
CALLBACKS = {"frozen": [Freezes], "spoiled": [Spoils], "asked": [Asks]}


def weights_of(model):
    return [keras.ops.convert_to_numpy(v) for v in model.variables]


def difference(model):
    """The largest difference between the weights of this process and those of the first."""
    own = [v.value.detach() for v in model.variables]
    first = [tensor.clone() for tensor in own]
    world().copy_from_first_(first)
    largest = max(float((a - b).abs().max()) for a, b in zip(own, first, strict=True))
    return max(world().sum_of([largest]))


def bytes_of(variables):
    return sum(v.value.nbytes for v in variables)


class Sent:
    """Counts the bytes that are handed to PyTorch's collective operations."""

    def __init__(self):
        self.bytes = {"all_reduce": 0, "reduce": 0, "broadcast": 0}
        for name in self.bytes:
            setattr(dist, name, self.counted(name, getattr(dist, name)))

    def counted(self, name, operation):
        @functools.wraps(operation)
        def call(tensor, *arguments, **named):
            self.bytes[name] += tensor.nbytes
            return operation(tensor, *arguments, **named)

        return call


class Held(keras.callbacks.Callback):
    """The most bytes of parameters that a process has while batches are trained.

    They are looked at whenever a layer's parameters have come or are about to.
    """

    def __init__(self):
        super().__init__()
        self.most, self.held, self.between, self.gradients, self.tensors = 0, 0, 0, 0, []

    def on_train_begin(self, logs=None):
        sharded = getattr(self.model.step, "sharded", None)
        if sharded is not None:
            sharded.own = self.counting(sharded.own)
        for name in ("begin", "gather"):
            setattr(Block, name, self.looking(getattr(Block, name)))

    def looking(self, method):
        @functools.wraps(method)
        def call(block, *arguments, **named):
            method(block, *arguments, **named)
            self.most = max(self.most, self.now())

        return call

    def counting(self, method):
        def call(gradients, *arguments):
            self.gradients = sum(g.nbytes for g in gradients if g is not None)
            return method(gradients, *arguments)

        return call

    def now(self):
        parameters = getattr(self.model.step, "parameters", None)
        begun = [] if parameters is None else [block.begun or [] for block in parameters.blocks]
        on_the_way = sum(flat.nbytes for flats in begun for flat, _ in flats)
        storages = [tensor.untyped_storage() for tensor in self.tensors]
        return on_the_way + sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def on_train_batch_begin(self, batch, logs=None):
        # Here: while a layer computes, a variable casts its value.
        self.tensors = [v.value for v in self.model.trainable_variables]
        self.between, self.most = self.now(), 0

    def on_train_batch_end(self, batch, logs=None):
        # Not what comes later: after training each process has all.
        self.held = self.most


class CountsUpdates(keras.callbacks.Callback):
    """What the updates of the second epoch send."""

    def __init__(self, sent):
        super().__init__()
        self.sent = sent

    def on_epoch_begin(self, epoch, logs=None):
        self.before = dict(self.sent.bytes)

    def on_epoch_end(self, epoch, logs=None):
        self.found = {name: n - self.before[name] for name, n in self.sent.bytes.items()}


def values_of_all(model, folder):
    """The weights, and the optimizer's state of all variables, through a file."""
    with model.step.whole_state():
        if world().is_first:
            variables = [*model.variables, *model.optimizer.variables]
            np.savez(folder / "kept.npz", *map(keras.ops.convert_to_numpy, variables))
    world().any_of(False)  # the others wait for the file
    with np.load(folder / "kept.npz") as kept:
        return list(kept.values())


def restore(model, kept):
    """What a checkpoint does, in a process that has been trained already."""
    model.step.build_whole_optimizer()
    variables = [*model.variables, *model.optimizer.variables]
    for variable, value in zip(variables, kept, strict=True):
        variable.assign(value)


def case(name, folder, sent):
    keras.utils.set_random_seed(3)
    model, counts = CASES[name](), CountsUpdates(sent)
    x, y = rows()
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "validation_data": rows(5)}
    callbacks = [made() for made in CALLBACKS.get(name, [])]
    if name == "saved":
        model.fit(x, y, **fit)
        model.save(folder / "saved.keras")
        # The second fit begins with the state of the first.
        keeps = keras.callbacks.ModelCheckpoint(folder / "kept.keras")
        model.fit(x, y, callbacks=[keeps], **fit)
        model = keras.models.load_model(folder / "kept.keras")
    held = Held()
    if name == "restored":
        model.fit(x, y, **fit)
        kept = values_of_all(model, folder)
        model.fit(x, y, **fit)
        restore(model, kept)
    history = model.fit(x, y, epochs=2, callbacks=[*callbacks, counts, held], **fit).history
    results = {f"log {key}": np.array(values) for key, values in history.items()}
    results.pop("log tokens_per_second", None)
    if name == "asked":
        results["log asked"] = np.array(callbacks[0].asked)
    results["difference"] = difference(model)
    results["iterations"] = int(model.optimizer.iterations)
    results |= {f"weight {i}": w for i, w in enumerate(weights_of(model))}
    # In one process the state is whole; elsewhere only while it is asked for.
    with model.step.whole_state():
        state = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    results |= {f"state {i}": s for i, s in enumerate(state)}
    own = sum(v.value.nbytes for v in model.optimizer.variables)
    ranks = [own if i == world().rank else 0 for i in range(world().size)]
    results["bytes of state"] = np.array(world().sum_of(ranks))
    results |= {f"bytes sent {name}": n for name, n in counts.found.items()}
    results["bytes held"], results["bytes between"] = held.held, held.between
    results["bytes of gradients"] = held.gradients
    layers = getattr(model.backbone, "blocks", [])
    results["bytes of layers"] = np.array([bytes_of(b.trainable_variables) for b in layers])
    owners = Owners(model.trainable_variables, world().size)
    others = [[v for v in b.trainable_variables if owners.of(v)] for b in layers]
    results["bytes of layers of others"] = np.array([bytes_of(part) for part in others])
    results["bytes owned"] = owners.bytes[0]
    if world().size > 1:
        facts = keras_llm.explain(model, show=False)["How it runs"]
        results["explained bytes"] = facts["sent for an update"].value
        if sharded():
            results["explained"] = np.array([facts["divided"].note, facts["layers"].note])
    results["bytes of parameters"] = bytes_of(model.trainable_variables)
    return results


def main(folder, *names):
    sent = Sent()
    for name in names or CASES:
        results = case(name, folder, sent)
        if world().is_first:
            np.savez(folder / f"{name}.npz", **results)


if __name__ == "__main__":
    if "KERAS_LLM_SHARD" not in os.environ:
        keras_llm.distribute(shard=None if sys.argv[1] == "nothing" else sys.argv[1])
    main(Path(sys.argv[2]), *sys.argv[3:])
