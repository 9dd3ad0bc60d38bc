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
# The example is an encoder-decoder: it reads one sequence and writes another. Its task is to write
# a sequence of digits backwards. `compile` and `fit` run with every backend; the steps and loops by
# hand are written for PyTorch, and are left out with another backend.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import data, losses, models, optimizers, schedules

PAD, START, END = 0, 1, 2
on_torch = keras.backend.backend() == "torch"
if not on_torch:
    print("The steps by hand are written for PyTorch: only compile and fit run here.")

# %% [markdown]
# ## 1. Batch
#
# A batch is a few rows of the data. All rows at once do not fit into memory, and the gradient of a
# single row is noisy. All rows of a batch have one length; padding (0) fills the shorter ones. Then
# the batch is copied to the device of the model, CPU or GPU; `fit` does that for you.
#
# The decoder is trained by **teacher forcing**: at each position it reads the correct tokens so
# far, not the tokens that it predicted itself. So one early mistake does not spoil the rest, and
# all positions are trained at the same time.
#
# To do this, the decoder reads the target shifted right by one position, and START stands first:
#
#     decoder reads      START  7  5  3
#     decoder predicts     7    5  3  END
#
# Shift exactly once. Without a shift, the decoder reads the very token that it should predict, and
# learns to copy it. With two shifts (one by you, one by a library), it is trained to predict the
# token after the next one.

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
# -> encoder reads    [9 8 5 6 3]
# -> decoder reads    [1 3 6 5 8 9]
# -> decoder predicts [3 6 5 8 9 2]

# %% [markdown]
# ## 2 to 5, once and by hand
#
# With the PyTorch backend, a Keras model is a `torch.nn.Module`, so PyTorch's own functions work on
# it.
#
# - **Forward**: the model returns logits, `[batch, length, vocabulary]`.
# - **Loss**: cross entropy over the tokens that are not padding. An untrained model is near ln 13.
# - **Backward**: the chain rule gives the gradient of the loss for every weight.
# - **Update**: first the gradients are clipped: if their norm is above 1, they are scaled down so
#   that it is 1. In deep networks a gradient can become very large. Then the optimizer moves the
#   weights, and the loss of the same batch is lower.


# %%
def new_model(cls=models.Seq2SeqTransformer):
    """A small model that always starts from the same weights."""
    keras.utils.set_random_seed(0)
    return cls(13, d_model=16, num_layers=1, num_heads=2, max_length=8, dropout=0.0)


def tensors(rows, device):
    """1. A batch, on the model's device."""
    arrays = (sources[rows], decoder_ids[rows], labels[rows])
    return [torch.tensor(array).to(device) for array in arrays]


criterion = torch.nn.CrossEntropyLoss(ignore_index=PAD)
if on_torch:
    model = new_model()
    device = next(model.parameters()).device
    encoder_ids, read, target = tensors(slice(0, 8), device)
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
# -> logits (8, 6, 13)
# -> first_loss.item() = 2.580948
# -> norm.item() = 1.071077
# -> norm_after.item() = 0.999999
# -> loss_after.item() = 2.486095

# %% [markdown]
# ## All five, by `compile` and `fit`
#
# `compile` sets the loss of step 3 and the optimizer of step 5. `fit` runs both loops: over epochs
# and over batches.


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
# -> of_fit[0] = 2.56528
# -> of_fit[-1] = 2.11836


# %% [markdown]
# ## A step of your own
#
# To change what one step does, and keep `fit` with its callbacks, validation and logs, override
# `train_step`. This one does the five steps with Keras's methods, for the PyTorch backend. Add your
# own lines where you need them.


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


if on_torch:
    of_my_step = compiled(new_model(MyModel)).fit(inputs, labels, **arguments).history["loss"]
    print(f"{of_my_step[-1] = :.5f}")
# -> of_my_step[-1] = 2.11836

# %% [markdown]
# ## The loop that `fit` replaced
#
# Read it from top to bottom: this is all that happens in training. At the end of an epoch the loss
# is averaged over the epoch's tokens, and shows whether the model is learning. The numbers are
# those of `fit`.


# %%
def train_by_hand(model):
    """The mean loss of each of 5 epochs."""
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
    history = []
    for _ in range(5):
        total_loss, tokens = 0.0, 0
        for first_row in range(0, 32, 8):
            encoder_ids, read, target = tensors(slice(first_row, first_row + 8), weights[0].device)
            optimizer.zero_grad()
            logits = model({"encoder_ids": encoder_ids, "decoder_ids": read}, training=True)
            loss = criterion(logits.view(-1, 13), target.view(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            scheduler.step()
            count = (target != PAD).sum().item()
            total_loss, tokens = total_loss + loss.item() * count, tokens + count
        history.append(total_loss / tokens)
    return history


if on_torch:
    of_loop = train_by_hand(new_model())
    print(f"{of_loop[0] = :.5f}")
    print(f"{of_loop[-1] = :.5f}")
# -> of_loop[0] = 2.56528
# -> of_loop[-1] = 2.11836
