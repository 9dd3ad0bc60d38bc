# %% [markdown]
# # 4. AdamW and Adafactor, and their numbers
#
# The gradient says in which direction the loss grows. An optimizer decides how far to go the other
# way. Plain SGD goes `learning_rate * gradient`, which suits transformers badly: the gradients of
# an embedding and of a norm differ by orders of magnitude, so no one learning rate fits both. Adam
# divides each weight's gradient by its own usual size.
#
# AdamW is Adam with a weight decay of its own. Adam without it is enough for small prototypes; SGD
# is rarely used for language models. AdamW, for update t with gradient g:
#
#     m = beta_1 * m + (1 - beta_1) * g            a mean of gradients: where to
#     v = beta_2 * v + (1 - beta_2) * g^2          a mean of their squares: how large they are
#     p = p * (1 - lr * weight_decay)              the weight decay, apart from the gradient
#     p = p - lr * (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, models, optimizers, schedules


def updated(optimizer, weight, gradient):
    """A weight after one update."""
    variable = keras.Variable(np.asarray(weight, "float32"), name="weight")
    optimizer.apply([keras.ops.convert_to_tensor(np.asarray(gradient, "float32"))], [variable])
    return keras.ops.convert_to_numpy(variable)


# %% [markdown]
# ## The first update, by hand
#
# In the first update m / sqrt(v) is g / |g|: every weight moves by the learning rate, whether its
# gradient is 5 or 0.0005. So `learning_rate` is a distance, and the most important number of all.
# Before that, the weight of 1 has lost lr * weight_decay of itself.

# %%
by_hand = 1.0 * (1 - 0.01 * 0.1) - 0.01
of_a_large_gradient = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[5.0]])[0, 0]
of_a_small_gradient = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[0.0005]])[0, 0]
print(f"{by_hand = :.5f}")
print(f"{of_a_large_gradient = :.5f}")
print(f"{of_a_small_gradient = :.5f}")

# %% [markdown]
# ## Usual numbers
#
# | argument | usual | why |
# | --- | --- | --- |
# | `learning_rate` | 5e-5 to 1e-4 to fine-tune, 3e-4 to 1e-3 from scratch | less for large models |
# | `beta_1` | 0.9 | remembers 1 / (1 - 0.9) = 10 gradients |
# | `beta_2` | 0.999 | remembers 1,000; 0.95 for large batches |
# | `epsilon` | 1e-8 | keeps the division defined |
# | `weight_decay` | 0.01 to 0.1 | matrices only: biases and norms have no reason to be small |
# | `global_clipnorm` | 1.0 | one odd batch cannot throw the model off |
#
# A learning rate ten times too large makes the loss jump or turn NaN; ten times too small, and the
# model hardly learns.
#
# ## Warm-up, then decay
#
# At first v is made of few gradients, so the first steps are small and grow. At the end they shrink
# again, and the model settles. Here: 500 updates up, straight down until update 10,000.

# %%
schedule = schedules.WarmupLinearDecay(5e-5, warmup_steps=500, total_steps=10_000)
print(f"{float(schedule(250)) = :.3e}")
print(f"{float(schedule(500)) = :.3e}")
print(f"{float(schedule(5_250)) = :.3e}")
print(f"{float(schedule(10_000)) = :.3e}")

# %% [markdown]
# ## Adafactor: the same idea with hardly any memory
#
# AdamW keeps m and v: 8 bytes for each weight of 4. Adafactor keeps, of a matrix, one mean for each
# row (R) and one for each column (C), and takes R * C / mean(R) for v. It keeps no m.


# %%
def bytes_of_state(optimizer):
    """Of a matrix of 512 x 512, per weight."""
    optimizer.build([keras.Variable(np.zeros((512, 512), "float32"))])
    matrices = [v for v in optimizer.variables if len(v.shape)]
    return sum(4 * np.prod(v.shape) for v in matrices) / 512**2


print(f"{bytes_of_state(optimizers.AdamW()) = :.4f}")
print(f"{bytes_of_state(optimizers.Adafactor()) = :.4f}")

# %% [markdown]
# Its learning rate can be its own, so you give none:
#
# - `relative_step=True`: 1 / sqrt(t), but at most 0.01, or 1e-6 * t with `warmup_init=True`;
# - `scale_parameter=True`: times the size of the weights (their root mean square, at least
#   `epsilon_2` = 0.001): large weights take large steps;
# - `clip_threshold=1.0`: an update whose root mean square is larger is scaled down;
# - `epsilon_1` = 1e-30 is added to squared gradients.
#
# Weights of size 2 and equal gradients make it easy by hand: R * C / mean(R) is g^2, the update is
# 1, and the first step is 0.01 * 2, or 1e-6 * 2 while it warms up.

# %%
twos, gradient = np.full((4, 4), 2.0), np.full((4, 4), 0.3)
step = 2 - updated(optimizers.Adafactor(), twos, gradient)[0, 0]
first_warmup_step = 2 - updated(optimizers.Adafactor(warmup_init=True), twos, gradient)[0, 0]
print(f"{step = :.5f}")
print(f"{first_warmup_step = :.1e}")

# %% [markdown]
# ## The loop that `fit` replaced
#
# AdamW with warm-up and decay, ten epochs of two batches. `fit` first.

# %%
x, y = np.random.default_rng(0).integers(1, 12, (2, 4, 6))
keras.utils.set_random_seed(0)
model = models.LanguageModel(keras.layers.Embedding(12, 8), keras.layers.Dense(12))
model(x)
embedding, kernel, bias = (torch.tensor(np.array(weight)) for weight in model.get_weights())
model.compile(
    optimizer=optimizers.AdamW(
        schedules.WarmupLinearDecay(0.02, warmup_steps=5, total_steps=20), weight_decay=0.1
    ),
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
)
history = model.fit(x, y, batch_size=2, epochs=10, shuffle=False, verbose=0).history
print(f"{history['loss'][-1] = :.6f}")

# %% [markdown]
# In PyTorch the schedule is an object that somebody must remember to step, and the weights that do
# not decay are a list that somebody must remember to make.

# %%
network = torch.nn.Sequential(torch.nn.Embedding(12, 8), torch.nn.Linear(8, 12))
network.load_state_dict({"0.weight": embedding, "1.weight": kernel.T, "1.bias": bias})
decayed = [weight for weight in network.parameters() if weight.ndim > 1]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": 0.1}, {"params": network[1].bias, "weight_decay": 0.0}],
    lr=0.02,
)
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda t: t / 5 if t < 5 else (20 - t) / (20 - 5)
)
criterion = torch.nn.CrossEntropyLoss(ignore_index=0)
batches = list(zip(torch.tensor(x).split(2), torch.tensor(y).split(2), strict=True))

for _ in range(10):
    total_loss = 0.0
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = criterion(network(inputs).view(-1, 12), labels.view(-1))
        loss.backward()
        optimizer.step()
        scheduler.step()
        total_loss += loss.item()
print(f"{total_loss / len(batches) = :.6f}")
