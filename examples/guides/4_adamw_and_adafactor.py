# %% [markdown]
# # 4. AdamW and Adafactor, and their settings
#
# The gradient points in the direction in which the loss grows. The optimizer moves each weight the
# other way, and decides how far. Plain SGD moves it by `learning_rate * gradient`. In a transformer
# the gradients of different layers differ by orders of magnitude, so no single learning rate fits
# all of them. Adam divides each weight's gradient by the usual size of that gradient, so that all
# weights move at a similar speed.
#
# AdamW is Adam with weight decay added. Adam without weight decay is enough for small prototypes;
# SGD is rarely used for language models. AdamW, for update t with gradient g:
#
#     m = beta_1 * m + (1 - beta_1) * g            running mean of the gradients: the direction
#     v = beta_2 * v + (1 - beta_2) * g^2          running mean of their squares: their usual size
#     p = p * (1 - lr * weight_decay)              weight decay; the gradient plays no part in it
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
# In the first update m / sqrt(v), corrected as above, is g / |g|. So every weight moves by the
# learning rate, whether its gradient is 5 or 0.0005. That makes `learning_rate` a distance, and the
# most important setting of all. Weight decay comes first: the weight of 1 loses lr * weight_decay
# of its value.

# %%
by_hand = 1.0 * (1 - 0.01 * 0.1) - 0.01
of_a_large_gradient = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[5.0]])[0, 0]
of_a_small_gradient = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[0.0005]])[0, 0]
print(f"{by_hand = :.5f}")
print(f"{of_a_large_gradient = :.5f}")
print(f"{of_a_small_gradient = :.5f}")
# -> by_hand = 0.98900
# -> of_a_large_gradient = 0.98900
# -> of_a_small_gradient = 0.98900

# %% [markdown]
# ## Usual settings
#
# | argument | usual | why |
# | --- | --- | --- |
# | `learning_rate` | 5e-5 to 1e-4 to fine-tune, 3e-4 to 1e-3 from scratch | less for large models |
# | `beta_1` | 0.9 | averages over about 1 / (1 - 0.9) = 10 gradients |
# | `beta_2` | 0.999 | averages over about 1,000; 0.95 for large batches |
# | `epsilon` | 1e-8 | avoids a division by 0 |
# | `weight_decay` | 0.01 to 0.1 | keeps the matrices' weights small; see below |
# | `global_clipnorm` | 1.0 | limits what one unusual batch can change |
#
# With a learning rate ten times too large the loss jumps or becomes NaN. With one ten times too
# small the model hardly learns.
#
# ## Why biases and norms do not decay
#
# Weight decay keeps a layer from relying on a few large weights. A matrix multiplies its inputs:
# the larger its weights, the more a small change of the input changes the output. Small weights
# make a smoother function, which usually generalises better.
#
# That reason does not hold for the vectors of a model:
#
# - A **bias** is added, not multiplied. It moves the output, and the output reacts to the input as
#   before, however large the bias is.
# - The **scale of a norm** starts at 1, and 1 is where it works. Decay would pull it to 0, and a
#   scale of 0 switches off the layer behind it.
#
# They are also few, mostly less than one weight in a hundred, so a model cannot memorise much in
# them. BERT's published training code, for example, excludes both from weight decay.
# `optimizers.AdamW` decays matrices only; `decay_vectors=True` decays everything. In the code below
# the gradient is 0, so only weight decay changes the weight of 1.

# %%
of_a_matrix = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[0.0]])[0, 0]
of_a_vector = updated(optimizers.AdamW(0.01, weight_decay=0.1), [1.0], [0.0])[0]
print(f"{of_a_matrix = :.5f}")
print(f"{of_a_vector = :.5f}")
# -> of_a_matrix = 0.99900
# -> of_a_vector = 1.00000

# %% [markdown]
# ## Warm-up, then decay
#
# In the first updates m and v are averages of few gradients, so their direction and size are not
# reliable yet. So the learning rate starts near 0 and grows: the warm-up. Towards the end it
# becomes smaller again, and the loss settles. Here it grows for 500 updates and then falls in a
# straight line to 0 at update 10,000.

# %%
schedule = schedules.WarmupLinearDecay(5e-5, warmup_steps=500, total_steps=10_000)
print(f"{float(schedule(250)) = :.3e}")
print(f"{float(schedule(500)) = :.3e}")
print(f"{float(schedule(5_250)) = :.3e}")
print(f"{float(schedule(10_000)) = :.3e}")
# -> float(schedule(250)) = 2.500e-05
# -> float(schedule(500)) = 5.000e-05
# -> float(schedule(5_250)) = 2.500e-05
# -> float(schedule(10_000)) = 0.000e+00

# %% [markdown]
# ## Adafactor: the same idea with hardly any memory
#
# AdamW keeps m and v: 8 bytes for each weight, which itself takes 4. For a matrix, Adafactor keeps
# one mean of squares for each row (R) and one for each column (C). It uses R * C / mean(R) in place
# of v, and keeps no m.


# %%
def bytes_of_state(optimizer):
    """Of a matrix of 512 x 512, per weight."""
    optimizer.build([keras.Variable(np.zeros((512, 512), "float32"))])
    matrices = [v for v in optimizer.variables if len(v.shape)]
    return sum(4 * np.prod(v.shape) for v in matrices) / 512**2


print(f"{bytes_of_state(optimizers.AdamW()) = :.4f}")
print(f"{bytes_of_state(optimizers.Adafactor()) = :.4f}")
# -> bytes_of_state(optimizers.AdamW()) = 8.0000
# -> bytes_of_state(optimizers.Adafactor()) = 0.0156

# %% [markdown]
# Adafactor can set its own learning rate, so you need not give one:
#
# - `relative_step=True`: the rate is 1 / sqrt(t), at most 0.01. With `warmup_init=True` it is at
#   most 1e-6 * t;
# - `scale_parameter=True`: the rate is multiplied by the size of the weights, which is their root
#   mean square, at least `epsilon_2` = 0.001. Larger weights move further;
# - `clip_threshold=1.0`: an update whose root mean square is larger than this is scaled down to it;
# - `epsilon_1` = 1e-30 is added to the squared gradients.
#
# An example by hand: all weights are 2 and all gradients are equal. Then R * C / mean(R) is g^2,
# and the update is 1. The first step is 0.01 * 2 = 0.02. With `warmup_init=True` it is 1e-6 * 2.

# %%
twos, gradient = np.full((4, 4), 2.0), np.full((4, 4), 0.3)
step = 2 - updated(optimizers.Adafactor(), twos, gradient)[0, 0]
first_warmup_step = 2 - updated(optimizers.Adafactor(warmup_init=True), twos, gradient)[0, 0]
print(f"{step = :.5f}")
print(f"{first_warmup_step = :.1e}")
# -> step = 0.02000
# -> first_warmup_step = 2.0e-06

# %% [markdown]
# ## The loop that `fit` replaced
#
# AdamW with warm-up and decay, ten epochs of two batches. First with `fit`:

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
# -> history['loss'][-1] = 2.157073

# %% [markdown]
# In PyTorch you call `scheduler.step()` after each update yourself, and you put the weights that do
# not decay into a group of their own.

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
# -> total_loss / len(batches) = 2.157073
