# %% [markdown]
# # 6. The training loop in five steps
#
#     for each epoch
#         for each batch                                                  1  batch
#             logits = model(inputs)                                      2  forward
#             loss = how wrong the logits are                             3  loss
#             gradients = how the loss changes with each weight           4  backward
#             weights = weights moved by the optimizer                    5  update
#
# An encoder-decoder shows all of it: one sequence in, another one out. The task is to write a
# sequence of digits backwards. The loops by hand are PyTorch's, and so this guide runs on no other
# backend.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import data, losses, models, optimizers, schedules

PAD, START, END = 0, 1, 2

# %% [markdown]
# ## 1. Batch
#
# A few rows at a time: all data does not fit into memory, one row alone gives a shaky gradient.
# Rows of a batch have one length; padding (0) fills the shorter ones up. Then the batch moves to
# the device, CPU or GPU, that the model is on; `fit` does that by itself.
#
# The decoder learns by **teacher forcing**: at each position it reads the right beginning, not what
# it guessed itself, so one early mistake does not spoil the rest, and all positions train at once.
# What it reads is the target shifted right by one. Shift once, and only once: unshifted, the model
# reads the answer; shifted twice, it is asked for the token after the next.

# %%
rng = np.random.default_rng(0)
sources = np.zeros((32, 5), "int64")
targets = np.zeros((32, 6), "int64")
for source, target in zip(sources, targets, strict=True):
    digits = rng.integers(3, 13, rng.integers(2, 6))
    source[: len(digits)] = digits
    target[: len(digits) + 1] = [*digits[::-1], END]
decoder_ids, labels = data.teacher_forcing(targets, start_id=START)
print("encoder reads   ", sources[0])
print("decoder reads   ", decoder_ids[0])
print("decoder predicts", labels[0])

# %% [markdown]
# ## 2 to 5, once and by hand
#
# On PyTorch a Keras model is a `torch.nn.Module`, so its forward and backward are PyTorch's.
#
# - **Forward**: logits `[batch, length, vocabulary]`.
# - **Loss**: cross entropy over the tokens that count. An untrained model is near ln 13.
# - **Backward**: the chain rule, from the loss to every weight.
# - **Update**: first the gradients are clipped, so that their norm is at most 1: in deep networks
#   they may explode. Then the optimizer moves the weights, and the same batch costs less.


# %%
def new_model(cls=models.Seq2SeqTransformer):
    """A small model that always starts from the same weights."""
    keras.utils.set_random_seed(0)
    return cls(13, d_model=16, num_layers=1, num_heads=2, max_length=8, dropout=0.0)


def tensors(rows):
    """1. A batch, on the model's device."""
    arrays = (sources[rows], decoder_ids[rows], labels[rows])
    return [torch.tensor(array).to(device) for array in arrays]


model = new_model()
device = next(model.parameters()).device
criterion = torch.nn.CrossEntropyLoss(ignore_index=PAD)
encoder_ids, read, target = tensors(slice(0, 8))
logits = model({"encoder_ids": encoder_ids, "decoder_ids": read})
first_loss = criterion(logits.view(-1, 13), target.view(-1))
first_loss.backward()
norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
norm_after = torch.nn.utils.get_total_norm([w.grad for w in model.parameters()])
torch.optim.SGD(model.parameters(), lr=0.1).step()
logits = model({"encoder_ids": encoder_ids, "decoder_ids": read})
loss_after = criterion(logits.view(-1, 13), target.view(-1))
print("logits", tuple(logits.shape))
print(f"{first_loss.item() = :.6f}")
print(f"{norm.item() = :.6f}")
print(f"{norm_after.item() = :.6f}")
print(f"{loss_after.item() = :.6f}")

# %% [markdown]
# ## All five, by `compile` and `fit`
#
# `compile` names steps 3 and 5, `fit` is the two loops around them.


# %%
def compiled(model):
    """The model with its loss and optimizer."""
    schedule = schedules.WarmupLinearDecay(0.01, warmup_steps=4, total_steps=20)
    model.compile(
        optimizer=optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=PAD),
    )
    return model


inputs = {"encoder_ids": sources, "decoder_ids": decoder_ids}
arguments = {"batch_size": 8, "epochs": 5, "shuffle": False, "verbose": 0}
of_fit = compiled(new_model()).fit(inputs, labels, **arguments).history["loss"]
print(f"{of_fit[0] = :.5f}")
print(f"{of_fit[-1] = :.5f}")


# %% [markdown]
# ## A step of your own
#
# To change what happens in a step, and keep `fit` with its callbacks, validation and logs, override
# `train_step`. This one is the five steps in Keras's words; put your idea between the lines.


# %%
class MyModel(models.Seq2SeqTransformer):
    def train_step(self, batch):
        x, y = batch
        self.zero_grad()
        logits = self(x, training=True)
        loss = self.compute_loss(x=x, y=y, y_pred=logits)
        loss.backward()
        gradients = [weight.value.grad for weight in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        return self.compute_metrics(x, y, logits)


of_my_step = compiled(new_model(MyModel)).fit(inputs, labels, **arguments).history["loss"]
print(f"{of_my_step[-1] = :.5f}")

# %% [markdown]
# ## The loop that `fit` replaced
#
# Start at the top, follow it to the bottom: nothing else happens in training. At the end of an
# epoch, the loss is averaged over its tokens, to see whether the model learns.

# %%
model = new_model()
weights = list(model.parameters())
optimizer = torch.optim.AdamW(
    [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.01},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
    ],
    lr=0.01,
)
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda t: t / 4 if t < 4 else (20 - t) / (20 - 4)
)
of_loop = []
for _ in range(5):
    total_loss, tokens = 0.0, 0
    for first_row in range(0, 32, 8):
        encoder_ids, read, target = tensors(slice(first_row, first_row + 8))
        optimizer.zero_grad()
        logits = model({"encoder_ids": encoder_ids, "decoder_ids": read}, training=True)
        loss = criterion(logits.view(-1, 13), target.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        count = (target != PAD).sum().item()
        total_loss, tokens = total_loss + loss.item() * count, tokens + count
    of_loop.append(total_loss / tokens)
print(f"{of_loop[0] = :.5f}")
print(f"{of_loop[-1] = :.5f}")
