# %% [markdown]
# # 2. Cross entropy of tokens, and masking
#
# The model gives every token of the vocabulary a score, its logit z. Softmax turns the scores into
# probabilities:
#
#     p_j = exp(z_j) / sum_k exp(z_k)
#
# The loss of one token is -ln p(label). It is 0 if the model gives the label the probability 1, and
# ln V if all V tokens are equally likely. It grows without limit as p(label) goes to 0.
#
# The loss of a batch is the mean over its N tokens. Textbooks write it with y, which is 1 at the
# label and 0 everywhere else (one-hot):
#
#     loss = -(1/N) sum_i sum_j y_ij ln p_ij
#
# In the inner sum every term is 0 except the label's. So the code only takes p at the label, and
# builds no one-hot vectors.

# %%
import warnings

import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch
from keras import ops

from keras_llm import losses, models

# %% [markdown]
# ## By hand
#
# One row of four positions, and five tokens in the vocabulary. The last position is padding: its
# label is 0, and what the model predicts there must not change the loss. So the sum has 3 terms,
# and N = 3.

# %%
logits = np.array(
    [
        [
            [0.0, 2.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 3.0, 0.0],
            [2.0, 0.0, 0.0, 0.0, 0.0],
        ]
    ],
    "float32",
)
labels = np.array([[1, 2, 4, 0]])
probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
per_token = -np.log([probabilities[0, i, labels[0, i]] for i in range(4)])
is_text = labels[0] != 0
by_hand = per_token[is_text].sum() / is_text.sum()
print(f"{per_token[0] = :.6f}")
print(f"{per_token[1] = :.6f}")
print(f"{per_token[2] = :.6f}")
print(f"{by_hand = :.6f}")
# -> per_token[0] = 0.573172
# -> per_token[1] = 1.609438
# -> per_token[2] = 3.250522
# -> by_hand = 1.811044

# %% [markdown]
# ## By the loss class
#
# `ignore_index=0` says which label is padding. The loss takes logits of the shape
# `[batch, length, V]`; PyTorch's needs them as `[batch * length, V]`. Both take logits and apply
# the softmax themselves. If your model ends with a softmax, write `from_logits=False`; otherwise
# softmax is applied twice.

# %%
by_loss = float(losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)(labels, logits))
flat_logits, flat_labels = torch.tensor(logits).view(-1, 5), torch.tensor(labels).view(-1)
by_torch = torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).item()
print(f"{by_loss = :.6f}")
print(f"{by_torch = :.6f}")
# -> by_loss = 1.811044
# -> by_torch = 1.811044

# %% [markdown]
# ## Two mistakes with padding
#
# 1. **Padding counts as text.** Padding is easy to predict, so its loss is small and makes the mean
#    smaller: `padding_counts`.
# 2. **The loss of padding is set to 0, but N still counts it.** The mean is too small again, and a
#    batch with more padding shows a smaller loss: `divided_by_all`.
#
# A `sample_weight` of 0 masks a token exactly as `ignore_index` does: `weighted`. With
# `reduction="sum"` nothing is divided, and `"none"` returns one loss for each token.

# %%
padding_counts = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits))
divided_by_all = per_token[is_text].sum() / labels.size
weighted = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits, is_text[None]))
sum_of_tokens = float(
    losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, reduction="sum")(labels, logits)
)
print(f"{padding_counts = :.6f}")
print(f"{divided_by_all = :.6f}")
print(f"{weighted = :.6f}")
print(f"{sum_of_tokens = :.6f}")
# -> padding_counts = 1.466447
# -> divided_by_all = 1.358283
# -> weighted = 1.811044
# -> sum_of_tokens = 5.433133

# %% [markdown]
# ## The gradient
#
# The gradient of the loss with respect to the logits is
#
#     d loss / d z_ij = (p_ij - y_ij) / N
#
# At the label it is (p - 1) / N, which is negative. At every other token it is p / N, which is
# positive. The optimizer moves the logits against the gradient: it raises the label's logit and
# lowers the others. The less probable the label was, the larger the change. At padding the gradient
# is 0.

# %%
flat_logits.requires_grad_()
torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).backward()
gradient_of_label = flat_logits.grad[1, 2].item()
gradient_of_another = flat_logits.grad[1, 0].item()
gradient_of_padding = flat_logits.grad[3].abs().max().item()
print(f"{gradient_of_label = :.6f}")
print(f"{gradient_of_another = :.6f}")
print(f"{gradient_of_padding = :.6f}")
# -> gradient_of_label = -0.266667
# -> gradient_of_another = 0.066667
# -> gradient_of_padding = 0.000000

# %% [markdown]
# ## Padding and attention
#
# Masking the loss is one half. The other half is what the model reads. In a decoder, a token sees
# itself and the tokens before it:
#
# - Padding **after** the text changes nothing: no token of the text sees it. This is the usual
#   case, and it needs no mask.
# - Padding **before** the text is seen like text, and changes the logits of every token.
#   `pad_id=0` excludes it from attention.
#
# In an encoder every token sees the whole row, so padding must always be excluded:
# `Seq2SeqTransformer` has `pad_id=0` by default.
#
# The numbers are the largest change of a logit when two tokens of padding are added to a row.


# %%
def largest_change(padded, text, pad_id=None):
    """How much the logits of [1, 2, 3] change in a padded row, where `text` is their place."""
    model = models.CausalTransformer(5, 8, num_layers=1, num_heads=2, max_length=8, pad_id=pad_id)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, weight.shape) for weight in model.weights])
    alone, padded = (ops.convert_to_numpy(model(np.array([row]))) for row in ([1, 2, 3], padded))
    return np.abs(padded[:, text] - alone).max()


padding_after = largest_change([1, 2, 3, 0, 0], slice(0, 3))
padding_before = largest_change([0, 0, 1, 2, 3], slice(2, 5))
padding_before_masked = largest_change([0, 0, 1, 2, 3], slice(2, 5), pad_id=0)
print(f"{padding_after = :.4f}")
print(f"{padding_before = :.4f}")
print(f"{padding_before_masked = :.4f}")
# -> padding_after = 0.0000
# -> padding_before = 0.9297
# -> padding_before_masked = 0.0000

# %% [markdown]
# ## Padding and training
#
# If padding counts, the model is also trained to predict it. In these rows every text ends with
# token 3, and padding follows. After 50 updates, the model that counts padding is almost sure that
# padding comes after 3, and would write padding when it generates. The model that ignores padding
# has learnt nothing about what comes after 3: the probability is still 1/5.
#
# So the end of a text needs a token of its own, which is not the padding id. Otherwise the model
# cannot learn where to stop.
#
# `fit` warns if padding counts. Here the mistake is made on purpose, and the warning is turned off.

# %%
rows = np.array([[1, 2, 3, 0, 0, 0], [2, 4, 1, 3, 0, 0]])
p_of_padding = {}
for ignore_index in (-100, 0):
    model = models.LanguageModel(keras.layers.Embedding(5, 5, "zeros"), keras.layers.Identity())
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=ignore_index),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(rows[:, :-1], rows[:, 1:], epochs=50, verbose=0)
    probabilities = ops.convert_to_numpy(ops.softmax(model(np.array([[3]]))))
    p_of_padding[ignore_index] = probabilities[0, 0, 0]
print(f"{p_of_padding[-100] = :.4f}")
print(f"{p_of_padding[0] = :.4f}")
# -> p_of_padding[-100] = 0.9038
# -> p_of_padding[0] = 0.2000

# %% [markdown]
# ## Over an epoch
#
# The same rule holds for an epoch: add up the losses of all tokens, and divide once by the number
# of tokens. Here an epoch has two batches of one row. The first row has 7 tokens, the second has 2
# and the rest is padding. So the epoch's loss is the sum of 9 losses, divided by 9.
#
# `fit` logs this number. It is computed while the model trains: the second row is measured after
# the update from the first.

# %%
x = np.array([[1, 2, 3, 4, 1, 3, 2], [3, 1, 0, 0, 0, 0, 0]])
y = np.array([[2, 3, 4, 1, 3, 2, 4], [1, 4, 0, 0, 0, 0, 0]])
keras.utils.set_random_seed(0)
model = models.LanguageModel(keras.layers.Embedding(5, 8, "normal"), keras.layers.Dense(5))
model(x)
start = [np.array(weight) for weight in model.get_weights()]
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=1.0),
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
)
history = model.fit(x, y, batch_size=1, epochs=3, shuffle=False, verbose=0).history
print(f"{history['loss'][0] = :.6f}")
print(f"{history['loss'][-1] = :.6f}")
# -> history['loss'][0] = 1.608369
# -> history['loss'][-1] = 1.492463

# %% [markdown]
# ## The loop that `fit` replaced
#
# The same training in plain PyTorch, from the same initial weights. `criterion` returns the mean
# over a batch's tokens. To get back the sum, the loop multiplies it by the number of tokens.
#
# Many loops skip this and average the batches' means: `sum(means) / len(means)`. Then the 2 tokens
# of the second batch weigh as much as the 7 of the first, and the number is another one. The last
# lines show both for the last epoch: the two means, their average weighted by tokens, which is what
# `fit` logged, and their plain average.

# %%
network = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
embedding, kernel, bias = map(torch.tensor, start)
network.load_state_dict({"0.weight": embedding, "1.weight": kernel.T, "1.bias": bias})
optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
criterion = torch.nn.CrossEntropyLoss(ignore_index=0)

for _ in range(3):
    total_loss, tokens, means = 0.0, 0, []
    for inputs, targets in zip(torch.tensor(x), torch.tensor(y), strict=True):
        optimizer.zero_grad()
        loss = criterion(network(inputs), targets)
        loss.backward()
        optimizer.step()
        count = (targets != 0).sum().item()
        total_loss += loss.item() * count
        tokens += count
        means.append(loss.item())
print(f"{means[0] = :.6f}")
print(f"{means[1] = :.6f}")
print(f"{total_loss / tokens = :.6f}")
print(f"{sum(means) / len(means) = :.6f}")
# -> means[0] = 1.646694
# -> means[1] = 0.952656
# -> total_loss / tokens = 1.492463
# -> sum(means) / len(means) = 1.299675
