# %% [markdown]
# # 3. Perplexity, and why accuracy misleads
#
# A loss of 2.3 says little to people. Its exponential does:
#
#     perplexity = exp(sum of -ln p(label) / number of tokens)
#
# It is the number of tokens that the model hesitates between. One that is sure and right has
# perplexity 1; one that knows nothing has V, the size of the vocabulary. A new model that starts
# far above V is worse than a guess: its first weights are too large, or not its own.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models


def measured(metric, probabilities, labels):
    """What a metric says of these probabilities, `[tokens, V]`."""
    metric.update_state(np.array([labels]), np.log([probabilities]).astype("float32"))
    return float(metric.result())


# %% [markdown]
# A model that thinks all 8 tokens equally likely hesitates between 8.

# %%
no_idea = measured(metrics.Perplexity(), np.full((3, 8), 1 / 8), [1, 5, 7])
print(f"{no_idea = :.6f}")

# %% [markdown]
# ## Why accuracy misleads
#
# Accuracy asks one thing: did the label have the largest probability? Two models, four tokens, both
# right three times. The careful one gives the labels 0.6, 0.6, 0.6 and 0.2. The bold one gives them
# 0.9, 0.9, 0.9 and 0.001: where it errs, it swears to it. Accuracy sees no difference; perplexity
# does, and so does the reader of a text that is written from such probabilities.


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

# %% [markdown]
# It misleads in other ways as well. In English, a model that always says "the" is right about once
# in twenty words and has learnt nothing. And where padding counts, a batch that is half padding
# gives a model half of the points for free: hence token accuracy, over the tokens that count.

# %%
padded_labels = np.array([[1, 1, 0, 0]])
says_zero = np.array([[[1.0, 0.0]] * 4])
padding_counts = metrics.MaskedTokenAccuracy()
token_accuracy = metrics.MaskedTokenAccuracy(ignore_index=0)
for metric in (padding_counts, token_accuracy):
    metric.update_state(padded_labels, says_zero)
print(f"{float(padding_counts.result()) = :.2f}")
print(f"{float(token_accuracy.result()) = :.2f}")

# %% [markdown]
# ## Divide once, at the end
#
# Two batches: 7 tokens that cost 8 nats each, and 19 that cost nothing. There are three ways to
# average, and one is right. (A nat is the unit of -ln p.)

# %%
right = np.exp((7 * 8 + 19 * 0) / (7 + 19))
exp_of_mean_of_means = np.exp((8 + 0) / 2)
mean_of_perplexities = (np.exp(8) + np.exp(0)) / 2
print(f"{right = :.2f}")
print(f"{exp_of_mean_of_means = :.2f}")
print(f"{mean_of_perplexities = :.2f}")

# %% [markdown]
# ## What `fit` and `evaluate` log
#
# Tables of logits make such a model: after token 0 the label 1 costs 8 nats (nearly), after token 1
# nothing. `Perplexity` adds up sums over the batches. It takes the raw -ln p, never the smoothed
# loss: compiled with label smoothing, the loss changes and the perplexity does not.

# %%
table = keras.layers.Embedding(2, 2)
model = models.LanguageModel(table, keras.layers.Identity())
x = np.array([[0] * 7 + [1] * 12, [1] * 19])
y = np.array([[1] * 7 + [-1] * 12, [1] * 19])
model(x)
table.set_weights([np.array([[8.0, 0.0], [0.0, 100.0]])])
logs = {}
for smoothing in (0.0, 0.1):
    model.compile(
        loss=losses.MaskedSparseCategoricalCrossentropy(-1, label_smoothing=smoothing),
        metrics=[metrics.Perplexity(ignore_index=-1)],
    )
    logs[smoothing] = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
print(f"{logs[0.0]['loss'] = :.6f}")
print(f"{logs[0.0]['perplexity'] = :.6f}")
print(f"{logs[0.1]['loss'] = :.6f}")
print(f"{logs[0.1]['perplexity'] = :.6f}")

# %% [markdown]
# ## The loop that `evaluate` replaced
#
# Sums in the loop, one division and one exponential after it.

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
print(f"{perplexity = :.6f}")
