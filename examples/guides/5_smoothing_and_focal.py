# %% [markdown]
# # 5. Label smoothing and focal loss
#
# Cross entropy is lowest when the model gives every label the probability 1. Two losses change
# that:
#
# - **label smoothing** asks for a little less than 1, which reduces overfitting;
# - **focal loss** lowers the loss of tokens that the model already predicts well, so that the
#   others weigh more.
#
# Both can be computed from three numbers of each token, whatever the size of the vocabulary. With
# logits z:
#
#     nll = -ln p(label)      lse = ln sum_j exp(z_j)      mean = mean_j z_j

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models

logits = np.array([[2.0, 0.0, 1.0, -1.0, 0.5]], "float32")
label = np.array([0])
lse = np.log(np.exp(logits[0]).sum())
nll = lse - logits[0, 0]
print(f"{nll = :.6f}")
# -> nll = 0.574438

# %% [markdown]
# ## Label smoothing
#
# Plain cross entropy compares the probabilities with a target that is 1 at the label and 0
# elsewhere. With smoothing e = 0.1, a tenth of the 1 is spread evenly over all V tokens, the label
# included. The cross entropy with this target is
#
#     S = (1 - e) * nll + e * (lse - mean)

# %%
smoothed_by_hand = 0.9 * nll + 0.1 * (lse - logits[0].mean())
smoothing = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
smoothed = float(smoothing(label, logits))
smoothed_by_torch = torch.nn.functional.cross_entropy(
    torch.tensor(logits), torch.tensor(label), label_smoothing=0.1
).item()
print(f"{smoothed_by_hand = :.6f}")
print(f"{smoothed = :.6f}")
print(f"{smoothed_by_torch = :.6f}")
# -> smoothed_by_hand = 0.724438
# -> smoothed = 0.724438
# -> smoothed_by_torch = 0.724438

# %% [markdown]
# A model that is too sure of the label now has a high loss. With a logit of 100 for the label and 0
# for the others, the loss without smoothing is 0, and with smoothing it is 8.
#
# The lowest possible loss is no longer 0. It is the entropy of the target, which here is 0.92 for
# the label and 0.02 for each of the four others. So you cannot compare a loss with smoothing to one
# without. You can compare perplexities, because they are computed without smoothing.
#
# For translation 0.1 is usual. Language models are mostly trained without smoothing.

# %%
too_sure = float(smoothing(label, np.array([[100.0, 0, 0, 0, 0]], "float32")))
target = np.array([[0.92, 0.02, 0.02, 0.02, 0.02]])
least = float(smoothing(label, np.log(target).astype("float32")))
entropy = -(target * np.log(target)).sum()
print(f"{too_sure = :.6f}")
print(f"{least = :.6f}")
print(f"{entropy = :.6f}")
# -> too_sure = 8.000000
# -> least = 0.389673
# -> entropy = 0.389673

# %% [markdown]
# ## Focal loss
#
# With p the probability of the label:
#
#     focal = alpha * (1 - p)^gamma * nll
#
# With gamma = 2, a token to which the model gives 0.9 keeps 1 % of its loss; a token with 0.1 keeps
# 81 %. In cross entropy the second token's loss is 22 times the first's, in focal loss 1,770 times.
# `gamma=0` is cross entropy. `alpha` is one factor for all tokens (0.25 in the paper), or one for
# each class.


# %%
def with_probability(p):
    """Logits whose softmax gives the label, 0, the probability p."""
    return np.log([[p, 1 - p]]).astype("float32")


focal = losses.MaskedSparseCategoricalFocalCrossentropy(gamma=2.0)
easy, hard = float(focal(label, with_probability(0.9))), float(focal(label, with_probability(0.1)))
quarter = losses.MaskedSparseCategoricalFocalCrossentropy(gamma=2.0, alpha=0.25)
hard_times_alpha = float(quarter(label, with_probability(0.1)))
print(f"{easy = :.6f}")
print(f"{hard = :.6f}")
print(f"{hard_times_alpha = :.6f}")
print(f"{np.log(0.1) / np.log(0.9) = :.1f}")
print(f"{hard / easy = :.1f}")
# -> easy = 0.001054
# -> hard = 1.865094
# -> hard_times_alpha = 0.466273
# -> np.log(0.1) / np.log(0.9) = 21.9
# -> hard / easy = 1770.2

# %% [markdown]
# ## Learning from a teacher
#
# In distillation, a small model learns from a large one, the teacher. In place of the label, the
# loss uses the teacher's probabilities q for all tokens. The loss is the Kullback-Leibler
# divergence, where both models' logits are divided by a temperature T before the softmax:
#
#     T^2 * sum_j q_j * ln(q_j / p_j)

# %%
teacher = np.array([[3.0, 0.0, 1.0, 0.0, 0.0]], "float32")
q, p = (np.exp(z[0] / 2) / np.exp(z[0] / 2).sum() for z in (teacher, logits))
divergence_by_hand = 2**2 * (q * np.log(q / p)).sum()
distillation = losses.MaskedKLDivergence(temperature=2.0, target_from_logits=True)
divergence = float(distillation(teacher, logits))
print(f"{divergence_by_hand = :.6f}")
print(f"{divergence = :.6f}")
# -> divergence_by_hand = 0.172962
# -> divergence = 0.172961

# %% [markdown]
# ## The loop that `fit` replaced
#
# Focal loss with label smoothing, where padding is masked. First with `compile` and `fit`:

# %%
x = np.array([[1, 2, 3, 1, 2, 4], [2, 3, 1, 2, 0, 0]])
y = np.array([[2, 3, 1, 2, 4, 1], [3, 1, 2, 4, 0, 0]])
keras.utils.set_random_seed(0)
model = models.LanguageModel(keras.layers.Embedding(5, 8), keras.layers.Dense(5))
model(x)
embedding, kernel, bias = (torch.tensor(np.array(weight)) for weight in model.get_weights())
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=0.1, momentum=0.9),
    loss=losses.MaskedSparseCategoricalFocalCrossentropy(
        gamma=2.0, alpha=0.25, label_smoothing=0.1, ignore_index=0
    ),
    metrics=[metrics.Perplexity(ignore_index=0)],
)
history = model.fit(x, y, epochs=20, verbose=0).history
print(f"{history['loss'][-1] = :.6f}")
print(f"{history['perplexity'][-1] = :.6f}")
# -> history['loss'][-1] = 0.129029
# -> history['perplexity'][-1] = 2.956767

# %% [markdown]
# PyTorch has no focal loss for tokens. You write it by hand, with its mask.

# %%
network = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
network.load_state_dict({"0.weight": embedding, "1.weight": kernel.T, "1.bias": bias})
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
inputs, labels = torch.tensor(x), torch.tensor(y)
mask = labels != 0

for _ in range(20):
    optimizer.zero_grad()
    log_p = network(inputs).log_softmax(-1)
    log_p_label = log_p.gather(-1, labels[..., None])[..., 0]
    cross_entropy = -(0.9 * log_p_label + 0.1 * log_p.mean(-1))
    per_token = 0.25 * (1 - log_p_label.exp()) ** 2 * cross_entropy
    loss = (per_token * mask).sum() / mask.sum()
    loss.backward()
    optimizer.step()
perplexity = torch.exp(-(log_p_label * mask).sum() / mask.sum())
print(f"{loss.item() = :.6f}")
print(f"{perplexity.item() = :.6f}")
# -> loss.item() = 0.129029
# -> perplexity.item() = 2.956767
