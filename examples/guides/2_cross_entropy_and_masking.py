# %% [markdown]
# # 2. Cross entropy of tokens, and masking
#
# The model gives every token of the vocabulary a score, its logit z. Softmax makes probabilities:
#
#     p_j = exp(z_j) / sum_k exp(z_k)
#
# The loss of one token is -ln p of the label: 0 if the model was sure and right, ln V if it had no
# idea, without limit if it was sure and wrong. The loss of a batch is the mean over its N tokens.
# With y one-hot (1 at the label, 0 elsewhere), textbooks write
#
#     loss = -(1/N) sum_i sum_j y_ij ln p_ij
#
# The inner sum has one term that is not 0, so the label picks it: no one-hot vectors are needed.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, models

# %% [markdown]
# ## By hand
#
# One row of four positions, five tokens in the vocabulary. The last position is padding: its label
# is 0, and whatever the model says there must not matter. So the sum has 3 terms, and N = 3.

# %%
logits = np.array(
    [
        [
            [0.0, 2.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 3.0, 0.0],
            [9.0, 0, 0, 0, 0],
        ]
    ],
    "float32",
)
labels = np.array([[1, 2, 4, 0]])
probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
per_token = -np.log([probabilities[0, i, labels[0, i]] for i in range(4)])
counts = labels[0] != 0
by_hand = per_token[counts].sum() / counts.sum()
print(f"{per_token[0] = :.6f}")
print(f"{per_token[1] = :.6f}")
print(f"{per_token[2] = :.6f}")
print(f"{by_hand = :.6f}")

# %% [markdown]
# ## By loss
#
# `ignore_index=0` says which label is padding. The loss takes `[batch, length, V]` as it is;
# PyTorch's wants it flattened to `[batch * length, V]`. Both want logits and apply the softmax
# themselves: a model that ends with a softmax needs `from_logits=False`, or it is applied twice.

# %%
by_loss = float(losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)(labels, logits))
flat_logits, flat_labels = torch.tensor(logits).view(-1, 5), torch.tensor(labels).view(-1)
by_torch = torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).item()
print(f"{by_loss = :.6f}")
print(f"{by_torch = :.6f}")

# %% [markdown]
# ## What goes wrong without masking
#
# Padding is easy to predict. If it counts, the loss looks small and the model is praised for
# nothing. If it is set to 0 but still counted in N, the loss is small too, and smaller still in a
# batch with more padding.
#
# A `sample_weight` of 0 masks as well as `ignore_index`. `reduction="sum"` does not divide, and
# `"none"` gives one number a token.

# %%
padding_counts = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits))
divided_by_all = per_token[counts].sum() / labels.size
weighted = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits, counts[None]))
sum_of_tokens = float(
    losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, reduction="sum")(labels, logits)
)
print(f"{padding_counts = :.6f}")
print(f"{divided_by_all = :.6f}")
print(f"{weighted = :.6f}")
print(f"{sum_of_tokens = :.6f}")

# %% [markdown]
# ## The gradient
#
# With respect to the logits it is as simple as can be: (p - y) / N. Push the label's score up by
# what is missing from 1, and all others down by what they have too much. At padding it is 0.

# %%
flat_logits.requires_grad_()
torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).backward()
gradient_of_label = flat_logits.grad[1, 2].item()
gradient_of_padding = flat_logits.grad[3].abs().max().item()
print(f"{gradient_of_label = :.6f}")
print(f"{gradient_of_padding = :.6f}")

# %% [markdown]
# ## Over an epoch
#
# Two batches, of one row each: seven tokens in one, two in the other. The epoch's loss is the sum
# over all nine, divided once. The mean of the two batches' means is another number, in which the
# two tokens weigh as much as the seven.

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

# %% [markdown]
# ## The loop that `fit` replaced
#
# Most loops divide `total_loss` by the number of batches. This one keeps the sum and the count.

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
        total_loss += loss.item() * (targets != 0).sum().item()
        tokens += (targets != 0).sum().item()
        means.append(loss.item())
print(f"{total_loss / tokens = :.6f}")
print(f"{sum(means) / len(means) = :.6f}")
