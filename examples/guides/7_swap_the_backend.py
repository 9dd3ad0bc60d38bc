# %% [markdown]
# # 7. Swap the backend
#
# You write Keras. PyTorch, JAX or TensorFlow does the arithmetic. This file is the same for all
# three, and prints the same numbers:
#
#     python 7_swap_the_backend.py
#     KERAS_BACKEND=jax python 7_swap_the_backend.py
#     KERAS_BACKEND=tensorflow python 7_swap_the_backend.py
#
# The backend is chosen when Keras is imported, and cannot be changed later in the same program.
# `import keras_llm` comes before `import keras`: it chooses PyTorch, unless `KERAS_BACKEND` names
# another backend.

# %%
import keras_llm  # isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch
from keras import ops

from keras_llm import losses, metrics, models, optimizers

print("backend", keras.backend.backend())
# -> backend torch

# %% [markdown]
# ## Tensors
#
# A model returns tensors of its backend. `keras.ops` computes with the tensors of any backend, and
# `ops.convert_to_numpy` turns them into NumPy arrays. A program that calls `torch.exp` runs with
# PyTorch only.

# %%
zeros = ops.zeros((2, 3, 7))
print(type(zeros).__module__.split(".")[0], type(zeros).__name__)
log_of_v = float(ops.logsumexp(zeros, axis=-1)[0, 0])
print(f"{log_of_v = :.6f}")
# -> torch Tensor
# -> log_of_v = 1.945910


# %% [markdown]
# ## A loss for all three
#
# A loss of your own, written with `keras.ops`, runs with every backend too. You write one method.
# It returns the loss of each token, computed from its `nll` (-ln p of the label), its `lse` (the
# log-sum-exp of its logits) and the mean of its logits. This loss is the square of `nll`, so that
# improbable labels cost more.


# %%
@keras.saving.register_keras_serializable(package="guides")
class SquaredSurprise(keras_llm.losses.TokenLoss):
    def token_loss(self, nll, lse, mean_logit):
        return ops.square(nll)


squared = float(SquaredSurprise(ignore_index=0)(np.array([[1, 2, 0]]), ops.zeros((1, 3, 7))))
print(f"{squared = :.6f}")
# -> squared = 3.786566

# %% [markdown]
# ## The same training
#
# From the same seed, each backend draws different random numbers. To get comparable numbers, we
# draw the initial weights with NumPy. In your own training this makes no difference.

# %%
rng = np.random.default_rng(0)
embedding, kernel = rng.normal(0, 0.1, (7, 8)), rng.normal(0, 0.1, (8, 7))
x, y = rng.integers(1, 7, (2, 6, 5))
y[1, 3:] = y[4, 1:] = 0

model = models.LanguageModel(keras.layers.Embedding(7, 8), keras.layers.Dense(7, use_bias=False))
model(x)
model.set_weights([embedding, kernel])
model.compile(
    optimizer=optimizers.AdamW(0.02, weight_decay=0.1, global_clipnorm=1.0),
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
    metrics=[metrics.Perplexity(ignore_index=0)],
)
history = model.fit(x, y, batch_size=2, epochs=8, shuffle=False, verbose=0).history
print(f"{history['loss'][0] = :.5f}")
print(f"{history['loss'][-1] = :.5f}")
print(f"{history['perplexity'][-1] = :.5f}")
# -> history['loss'][0] = 1.94061
# -> history['loss'][-1] = 1.57639
# -> history['perplexity'][-1] = 4.83748

# %% [markdown]
# ## What is not the same
#
# - Speed. PyTorch runs the layers as one captured graph; JAX and TensorFlow compile the whole step.
#   Measure it on your machine.
# - Random numbers from the same seed: initial weights, dropout.
# - A `train_step` of your own, as in guide 6, is written for one backend.
#
# ## The loop that `fit` replaced
#
# The loop is in PyTorch, whichever backend ran above, and gives the same number.

# %%
weights = [torch.tensor(w, dtype=torch.float32, requires_grad=True) for w in (embedding, kernel)]
optimizer = torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1)
for _ in range(8):
    total_loss, tokens = 0.0, 0
    for first_row in range(0, 6, 2):
        inputs = torch.tensor(x[first_row : first_row + 2])
        labels = torch.tensor(y[first_row : first_row + 2])
        optimizer.zero_grad()
        logits = weights[0][inputs] @ weights[1]
        loss = torch.nn.functional.cross_entropy(
            logits.view(-1, 7), labels.view(-1), ignore_index=0
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        count = (labels != 0).sum().item()
        total_loss, tokens = total_loss + loss.item() * count, tokens + count
print(f"{total_loss / tokens = :.5f}")
# -> total_loss / tokens = 1.57639
