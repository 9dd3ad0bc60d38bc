# %% [markdown]
# # 8. Why not plain Keras?
#
# Keras was designed for one label in each row, such as the class of an image. In a language model
# each row has many labels, and some of them (padding) do not count. If you train one with the
# losses, metrics and optimizers that come with Keras, nothing raises an error, but some numbers are
# wrong. Here they are, each next to ours. Names that start with `keras_` are Keras's numbers, those
# with `ours_` are ours.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch
from keras import ops

from keras_llm import losses, metrics, models, optimizers

stock_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
our_loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1)


def pair(rows):
    """Two models, Keras's and ours, whose logits after token i are `rows[i]`."""
    tables = [keras.layers.Embedding(len(rows), len(rows[0])) for _ in range(2)]
    stock = keras.Sequential([tables[0]])
    ours = models.LanguageModel(tables[1], keras.layers.Identity())
    for model in (stock, ours):
        model(np.zeros((1, 1), "int32"))
        model.set_weights([np.array(rows, "float32")])
    return stock, ours


# %% [markdown]
# ## The loss of an epoch
#
# The first row has 31 tokens with loss 0. The second has one token with loss ln 5, and padding
# (-1). Each row is a batch. The mean over the tokens is (ln 5) / 32. Keras takes the mean of the
# two batches' means, so the one token weighs as much as the 31. `val_loss` is computed in the same
# way, and `EarlyStopping` watches it.

# %%
stock, ours = pair([[100.0, 0, 0, 0, 0], [0.0] * 5])
x = np.array([[0] * 31, [1] + [0] * 30])
y = np.array([[0] * 31, [0] + [-1] * 30])
stock.compile(loss=stock_loss)
ours.compile(loss=our_loss)
keras_loss, ours_loss = (model.evaluate(x, y, batch_size=1, verbose=0) for model in (stock, ours))
print(f"{keras_loss = :.3f}")
print(f"{ours_loss = :.4f}")
# -> keras_loss = 0.805
# -> ours_loss = 0.0503

# %% [markdown]
# ## Perplexity
#
# 7 tokens cost 8 nats each, 19 cost 0. The exponential of Keras's loss is not the perplexity,
# because that loss is a mean of batch means.

# %%
stock, ours = pair([[0.0, 100.0], [8.0, 0.0]])
x = np.array([[1] * 7 + [0] * 12, [0] * 19])
y = np.array([[1] * 7 + [-1] * 12, [1] * 19])
stock.compile(loss=stock_loss)
ours.compile(loss=our_loss, metrics=[metrics.Perplexity(ignore_index=-1)])
keras_perplexity = np.exp(stock.evaluate(x, y, batch_size=1, verbose=0))
ours_perplexity = ours.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)["perplexity"]
print(f"{keras_perplexity = :.1f}")
print(f"{ours_perplexity = :.2f}")
# -> keras_perplexity = 54.6
# -> ours_perplexity = 8.62

# %% [markdown]
# ## Accuracy, and padding
#
# Keras's metrics have no `ignore_class`, so padding must be masked by `sample_weight`. The first
# batch has length 128, and 100 of its 100 tokens are predicted correctly. The second has length 16,
# and 0 of its 10 tokens are. So 100 of 110 are correct. Keras first averages each row over its
# whole length, padding included.
#
# The loss has the same fault: weights of 0 mask the padding, but Keras divides by all positions. In
# the second example 3 of 8 positions count, so ln 5 becomes 3/8 of ln 5.

# %%
stock_accuracy = keras.metrics.SparseCategoricalAccuracy()
our_accuracy = metrics.MaskedTokenAccuracy()
for length, count, label in ((128, 100, 0), (16, 10, 1)):
    says_zero = np.array([[[1.0, 0.0]] * length], "float32")
    mask = (np.arange(length) < count)[None].astype("float32")
    for metric in (stock_accuracy, our_accuracy):
        metric.update_state(np.full((1, length), label), says_zero, sample_weight=mask)
keras_accuracy, ours_accuracy = float(stock_accuracy.result()), float(our_accuracy.result())
print(f"{keras_accuracy = :.3f}")
print(f"{ours_accuracy = :.3f}")

zeros, mask = np.zeros((2, 4), "int32"), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
keras_weighted, ours_weighted = (
    float(loss(zeros, np.zeros((2, 4, 5), "float32"), mask)) for loss in (stock_loss, our_loss)
)
print(f"{keras_weighted = :.4f}")
print(f"{ours_weighted = :.4f}")
# -> keras_accuracy = 0.556
# -> ours_accuracy = 0.909
# -> keras_weighted = 0.6035
# -> ours_weighted = 1.6094

# %% [markdown]
# ## Ids in bfloat16
#
# A bfloat16 number has 8 significant bits, so whole numbers above 256 are rounded: 31999 becomes
# 32000. Keras converts labels and predicted ids to the dtype of the logits. Below, four predictions
# are wrong by one or two ids, and Keras counts all four as correct. Ours compares integers.

# %%
id_in_bfloat16 = int(ops.cast(ops.convert_to_tensor(31999.0), "bfloat16"))
labels, guesses = np.array([31999, 30001, 29999, 28001]), [32000, 30000, 30000, 28000]
logits = np.zeros((4, 32_001), "float32")
logits[np.arange(4), guesses] = 5.0
stock_accuracy = keras.metrics.SparseCategoricalAccuracy()
our_accuracy = metrics.MaskedTokenAccuracy()
for metric in (stock_accuracy, our_accuracy):
    metric.update_state(labels, ops.convert_to_tensor(logits, "bfloat16"))
keras_bfloat16, ours_bfloat16 = float(stock_accuracy.result()), float(our_accuracy.result())
print(f"{id_in_bfloat16 = }")
print(f"{keras_bfloat16 = :.1f}")
print(f"{ours_bfloat16 = :.1f}")
# -> id_in_bfloat16 = 32000
# -> keras_bfloat16 = 1.0
# -> ours_bfloat16 = 0.0

# %% [markdown]
# ## Accumulated gradients
#
# Two batches of one row make one update. The first row has 20 labels of 0 and 11 of 1, the second
# has one label of 1. The model gives both tokens the probability 1/2. Label 0 has 20/32 of the
# labels, so its logit must rise, at learning rate 1 by 20/32 - 1/2 = 0.125. Keras averages the two
# batches' means. There the single label of the second row weighs as much as the 31 of the first,
# and the logit falls: the update goes in the wrong direction.

# %%
stock, ours = pair([[0.0, 0.0]])
x = np.zeros((2, 31), "int32")
y = np.array([[0] * 20 + [1] * 11, [1] + [-1] * 30])
for model, loss in ((stock, stock_loss), (ours, our_loss)):
    model.compile(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), loss)
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
keras_step, ours_step = (np.array(model.get_weights()[0])[0, 0] for model in (stock, ours))
print(f"{keras_step = :.4f}")
print(f"{ours_step = :.4f}")
# -> keras_step = -0.1774
# -> ours_step = 0.1250

# %% [markdown]
# ## Optimizers
#
# - AdamW. Keras decays biases too: a bias of 1 without gradient becomes 0.99. In bfloat16 its
#   beta_2, 0.999, rounds to 1, and a weight of 1 does not move; an update of 0.1 should bring it to
#   0.9 (0.8984 in bfloat16).
# - Adafactor is made to save memory. Keras's keeps a value for every weight all the same, so it
#   takes more than 4 bytes for each. And if a row and a column of a matrix have no gradient (a
#   token that does not occur, a unit that is never active), it turns every weight into NaN.


# %%
def updated(optimizer, weight, gradient, name="weight", dtype="float32"):
    """A weight after one update."""
    variable = keras.Variable(weight, name=name, dtype=dtype)
    optimizer.apply([ops.cast(gradient, dtype)], [variable])
    state = sum(4 * np.prod(v.shape) for v in optimizer.variables if len(v.shape))
    return np.array(ops.convert_to_numpy(ops.cast(variable, "float32"))), state / np.size(weight)


one, none, square = np.ones((1, 1)), np.zeros(1), np.ones((512, 512))
with_dead = np.ones((512, 512))
with_dead[0] = with_dead[:, 0] = 0
for name, library in (("keras", keras.optimizers), ("ours", optimizers)):
    bias = updated(library.AdamW(0.1, weight_decay=0.1), none + 1, none, "bias")[0][0]
    moved = updated(library.AdamW(0.1, weight_decay=0.0), one, one, dtype="bfloat16")[0][0, 0]
    adafactor = library.Adafactor() if name == "ours" else library.Adafactor(1e-3)
    after, bytes_of_state = updated(adafactor, square, with_dead)
    print(f"{name}_bias = {bias:.4f}")
    print(f"{name}_moved = {moved:.4f}")
    print(f"{name}_bytes = {bytes_of_state:.4f}")
    print(f"{name}_nan = {np.isnan(after).sum()}")
# -> keras_bias = 0.9900
# -> keras_moved = 1.0000
# -> keras_bytes = 4.0156
# -> keras_nan = 262144
# -> ours_bias = 1.0000
# -> ours_moved = 0.8984
# -> ours_bytes = 0.0156
# -> ours_nan = 0

# %% [markdown]
# ## The loop that `fit` replaced
#
# A loop that adds up sums and divides once prints our numbers of the first three sections.

# %%
easy, even, hard = torch.tensor([[100.0, 0, 0, 0, 0]]), torch.zeros(1, 5), torch.tensor([[8.0, 0]])


def loop(*batches):
    """Mean loss and share of right guesses over batches of equal tokens: logits, label, count."""
    total, right, tokens = 0.0, 0, 0
    for logits, label, count in batches:
        labels = torch.tensor([label] * count)
        logits = logits.expand(count, -1)
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(-1) == labels).sum().item()
        tokens += count
    return total / tokens, right / tokens


loop_loss = loop((easy, 0, 31), (even, 0, 1))[0]
loop_perplexity = np.exp(loop((hard, 1, 7), (easy, 0, 19))[0])
loop_accuracy = loop((easy, 0, 100), (easy, 1, 10))[1]
print(f"{loop_loss = :.4f}")
print(f"{loop_perplexity = :.2f}")
print(f"{loop_accuracy = :.3f}")
# -> loop_loss = 0.0503
# -> loop_perplexity = 8.62
# -> loop_accuracy = 0.909
