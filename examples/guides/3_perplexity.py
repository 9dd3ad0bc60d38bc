# %% [markdown]
# # 3. Perplexity, and why accuracy misleads
#
# A loss of 2.3 is hard to picture. Its exponential is easier:
#
#     perplexity = exp(sum of -ln p(label) / number of tokens)
#
# A perplexity of 10 means: on average the model is as uncertain as if it had to choose among 10
# equally likely tokens. A model that always gives the label the probability 1 has perplexity 1. A
# model that has learnt nothing has perplexity V, the size of the vocabulary.
#
# If an untrained model starts far above V, something is wrong. It gives high probabilities to wrong
# tokens, so it does worse than a model that gives all tokens 1/V. The usual causes are initial
# weights that are too large, and weights that were trained with another tokenizer.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models


def measured(metric, probabilities, labels):
    """The metric's value for these probabilities, `[tokens, V]`."""
    metric.update_state(np.array([labels]), np.log([probabilities]).astype("float32"))
    return float(metric.result())


# %% [markdown]
# All 8 tokens are equally likely, so the perplexity is 8.

# %%
no_idea = measured(metrics.Perplexity(), np.full((3, 8), 1 / 8), [1, 5, 7])
print(f"{no_idea = :.6f}")
# -> no_idea = 8.000000

# %% [markdown]
# ## Why accuracy misleads
#
# Accuracy asks one question: did the label have the largest probability? Compare two models on four
# tokens. Both are right three times. The careful model gives the labels 0.6, 0.6, 0.6 and 0.2. The
# bold model gives them 0.9, 0.9, 0.9 and 0.001: where it is wrong, it is almost certain of the
# wrong token. The accuracy of both is the same. The perplexity of the bold model is more than twice
# as high.


# %%
def two_tokens(p_of_label):
    """Rows of two probabilities: the label is token 0."""
    return np.array([[p, 1 - p] for p in p_of_label])


careful, bold = two_tokens([0.6, 0.6, 0.6, 0.2]), two_tokens([0.9, 0.9, 0.9, 0.001])
careful_accuracy = measured(metrics.MaskedTokenAccuracy(), careful, [0] * 4)
bold_accuracy = measured(metrics.MaskedTokenAccuracy(), bold, [0] * 4)
careful_perplexity = measured(metrics.Perplexity(), careful, [0] * 4)
bold_perplexity = measured(metrics.Perplexity(), bold, [0] * 4)
print(f"{careful_accuracy = :.2f}")
print(f"{bold_accuracy = :.2f}")
print(f"{careful_perplexity = :.6f}")
print(f"{bold_perplexity = :.6f}")
# -> careful_accuracy = 0.75
# -> bold_accuracy = 0.75
# -> careful_perplexity = 2.193457
# -> bold_perplexity = 6.085806

# %% [markdown]
# Accuracy misleads in two more ways. In English, a model that always predicts "the" is right about
# once in twenty words, although it has learnt nothing. And if padding counts, it is easy points:
# below, half of the row is padding, the model gets every real token wrong, and its accuracy is 0.5.
# `ignore_index` leaves padding out.

# %%
padded_labels = np.array([[1, 1, 0, 0]])
says_zero = np.array([[[1.0, 0.0]] * 4])
padding_counts = metrics.MaskedTokenAccuracy()
token_accuracy = metrics.MaskedTokenAccuracy(ignore_index=0)
for metric in (padding_counts, token_accuracy):
    metric.update_state(padded_labels, says_zero)
print(f"{float(padding_counts.result()) = :.2f}")
print(f"{float(token_accuracy.result()) = :.2f}")
# -> float(padding_counts.result()) = 0.50
# -> float(token_accuracy.result()) = 0.00

# %% [markdown]
# ## Divide once, at the end
#
# An epoch of two batches. In the first, 7 tokens cost 8 nats each. (A nat is the unit of -ln p.) In
# the second, 19 tokens cost nothing. There are three ways to average, and only the first is right:
#
# - add up the losses of all tokens, divide by 26, then take the exponential;
# - average the two batches' means, 8 and 0, and take the exponential: both batches weigh the same,
#   although one has 7 tokens and the other 19;
# - average the two batches' perplexities: that is worse, because exp(8) is so large.

# %%
right = np.exp((7 * 8 + 19 * 0) / (7 + 19))
exp_of_mean_of_means = np.exp((8 + 0) / 2)
mean_of_perplexities = (np.exp(8) + np.exp(0)) / 2
print(f"{right = :.2f}")
print(f"{exp_of_mean_of_means = :.2f}")
print(f"{mean_of_perplexities = :.2f}")
# -> right = 8.62
# -> exp_of_mean_of_means = 54.60
# -> mean_of_perplexities = 1490.98

# %% [markdown]
# ## What `fit` and `evaluate` log
#
# Now the same 26 tokens in a model. To know its losses beforehand, we write its logits into a
# table: the backbone is an embedding whose row i holds the logits after token i, and the head
# changes nothing.
#
# - After token 0 the logits are [8, 0]. The label 1 costs ln(1 + exp(8)), which is 8.0003.
# - After token 1 they are [0, 100]. The label 1 costs 0.
#
# The first row of the data holds 7 tokens of the first kind, and padding (label -1). The second
# row holds 19 of the second kind. With a batch size of 1 they are two batches, as above.

# %%
table = keras.layers.Embedding(2, 2)
model = models.LanguageModel(table, keras.layers.Identity())
x = np.array([[0] * 7 + [1] * 12, [1] * 19])
y = np.array([[1] * 7 + [-1] * 12, [1] * 19])
model(x)
table.set_weights([np.array([[8.0, 0.0], [0.0, 100.0]])])
model.compile(
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1),
    metrics=[metrics.Perplexity(ignore_index=-1)],
)
logs = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
print(f"{logs['loss'] = :.6f}")
print(f"{logs['perplexity'] = :.6f}")
print(f"{np.exp(logs['loss']) = :.6f}")
# -> logs['loss'] = 2.153937
# -> logs['perplexity'] = 8.618720
# -> np.exp(logs['loss']) = 8.618720

# %% [markdown]
# Here the perplexity is the exponential of the loss. That is so for plain cross entropy only. Label
# smoothing (guide 5) changes the loss: its value can no longer be compared with that of another
# model. `Perplexity` always uses -ln p(label), so it stays the same.

# %%
model.compile(
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1, label_smoothing=0.1),
    metrics=[metrics.Perplexity(ignore_index=-1)],
)
smoothed = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
print(f"{smoothed['loss'] = :.6f}")
print(f"{smoothed['perplexity'] = :.6f}")
# -> smoothed['loss'] = 5.700090
# -> smoothed['perplexity'] = 8.618720

# %% [markdown]
# ## The loop that `evaluate` replaced
#
# The same in PyTorch. `reduction="sum"` returns the sum over a batch's tokens. The loop adds up
# these sums and the numbers of tokens. After the last batch it divides once and takes the
# exponential.

# %%
weights = torch.tensor([[8.0, 0.0], [0.0, 100.0]])
total, tokens = 0.0, 0
with torch.no_grad():
    for inputs, targets in zip(torch.tensor(x), torch.tensor(y), strict=True):
        nll = torch.nn.functional.cross_entropy(
            weights[inputs], targets, ignore_index=-1, reduction="sum"
        )
        total += nll.item()
        tokens += (targets != -1).sum().item()
perplexity = np.exp(total / tokens)
print(f"{tokens = }")
print(f"{perplexity = :.6f}")
# -> tokens = 26
# -> perplexity = 8.618720
