# %% [markdown]
# # 10. Several devices
#
# A program that trains on one device trains on several, unchanged. PyTorch's launcher `torchrun`
# starts it once for each device, and `import keras_llm` finds the other processes:
#
#     torchrun --nproc-per-node=2 program.py
#
# Each process takes its rows of every batch. This guide shows what they have to tell each other so
# that the numbers are those of one process. It starts two processes on a CPU, which is slower than
# one: the numbers are what we look at.
#
# Several processes need PyTorch, so this guide runs with that backend only.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# %% [markdown]
# ## The rows
#
# Five rows, of which 10, 36, 14, 37 and 5 tokens count; 0 is padding. A batch has four rows, so the
# second batch of an epoch has one. Process 0 takes the rows 0, 2, ... of a batch, process 1 the
# rows 1, 3, ...: of the first batch they have 24 and 73 tokens, and of the second batch process 1
# has none.
#
# The rows of process 0 are of other tokens than those of process 1, so that their losses differ.

# %%
LENGTHS = np.array([10, 36, 14, 37, 5])
rng = np.random.default_rng(0)
ids = np.where(np.arange(5)[:, None] % 2, rng.integers(1, 4, (5, 38)), rng.integers(4, 8, (5, 38)))
x, y = ids[:, :-1], np.where(np.arange(37) < LENGTHS[:, None], ids[:, 1:], 0)
embedding = rng.normal(size=(8, 4)).astype("float32")
kernel = rng.normal(size=(4, 8)).astype("float32")
tokens = [int((y[rank:4:2] != 0).sum()) for rank in (0, 1)]
print(f"{tokens[0] = }")
print(f"{tokens[1] = }")
# -> tokens[0] = 24
# -> tokens[1] = 73

# %% [markdown]
# ## A mean of means is not the mean
#
# The loss of a batch is the sum over its 97 tokens divided by 97. If each process divides by its
# own tokens, and the two means are averaged, the 24 tokens weigh as much as the 73. This is what
# happens where each process calls `loss.backward()` on its own mean and the *gradients* are
# averaged, as PyTorch's `DistributedDataParallel` does. The gradient is then wrong, and nothing
# tells you.


# %%
def sums_of(rows):
    """The summed loss of some rows, how many of their tokens count, and the gradient of the sum."""
    weights = [torch.tensor(values, requires_grad=True) for values in (embedding, kernel)]
    logits = weights[0][torch.tensor(x[rows])] @ weights[1]
    labels = torch.tensor(y[rows])
    loss = F.cross_entropy(logits.mT, labels, ignore_index=0, reduction="sum")
    gradients = torch.autograd.grad(loss, weights)
    return loss.item(), int((labels != 0).sum()), torch.cat([g.flatten() for g in gradients])


(loss_0, tokens_0, gradient_0), (loss_1, tokens_1, gradient_1) = map(sums_of, ([0, 2], [1, 3]))
mean_of_means = (loss_0 / tokens_0 + loss_1 / tokens_1) / 2
mean = (loss_0 + loss_1) / (tokens_0 + tokens_1)
averaged = (gradient_0 / tokens_0 + gradient_1 / tokens_1) / 2
gradient = (gradient_0 + gradient_1) / (tokens_0 + tokens_1)
print(f"{loss_0 / tokens_0 = :.4f}")
print(f"{loss_1 / tokens_1 = :.4f}")
print(f"{mean_of_means = :.4f}")
print(f"{mean = :.4f}")
print(f"{averaged.norm().item() = :.4f}")
print(f"{gradient.norm().item() = :.4f}")
# -> loss_0 / tokens_0 = 3.0897
# -> loss_1 / tokens_1 = 4.0839
# -> mean_of_means = 3.5868
# -> mean = 3.8379
# -> averaged.norm().item() = 1.4949
# -> gradient.norm().item() = 1.9022


# %% [markdown]
# ## The same program, once and twice
#
# The program below knows nothing of processes, but for its last lines: every process would print,
# so the first one does. It is started as it is, and by `torchrun` with two processes.

# %%
PROGRAM = """
import keras_llm                                # joins the other processes, if there are any
import json
import sys
import keras
import numpy as np
from keras_llm import distribution, losses, metrics, models

start = np.load(sys.argv[1])
model = models.LanguageModel(keras.layers.Embedding(8, 4), keras.layers.Dense(8, use_bias=False))
model(start["x"])
model.set_weights([start["embedding"], start["kernel"]])
model.compile(
    optimizer=keras.optimizers.SGD(0.5),
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
    metrics=[metrics.Perplexity()],
)
x, y = start["x"], start["y"]
history = model.fit(x, y, batch_size=4, epochs=10, shuffle=False, verbose=0).history
facts = model.explain(show=False)["How it runs"].facts

if distribution.world().is_first:
    told = [f"{fact.name}: {fact.text}" for fact in facts]
    print(json.dumps({**history, "told": [line for line in told if "process" in line]}))
"""
folder = Path(tempfile.mkdtemp())
np.savez(folder / "start.npz", x=x, y=y, embedding=embedding, kernel=kernel)


def run(program, processes):
    """What a program prints, run by so many processes."""
    (folder / "program.py").write_text(program)
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # any free port
    command = [sys.executable, *(torchrun if processes > 1 else [])]
    command += [str(folder / "program.py"), str(folder / "start.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


one, two = run(PROGRAM, 1), run(PROGRAM, 2)
print(f"{one['loss'][0] = :.4f}")
print(f"{two['loss'][0] = :.4f}")
print(f"{one['gradient_norm'][0] = :.4f}")
print(f"{two['gradient_norm'][0] = :.4f}")
print(f"{one['loss'][-1] = :.4f}")
print(f"{two['loss'][-1] = :.4f}")
print(f"{one['perplexity'][-1] = :.3f}")
print(f"{two['perplexity'][-1] = :.3f}")
# -> one['loss'][0] = 3.8135
# -> two['loss'][0] = 3.8135
# -> one['gradient_norm'][0] = 1.9139
# -> two['gradient_norm'][0] = 1.9139
# -> one['loss'][-1] = 1.4292
# -> two['loss'][-1] = 1.4292
# -> one['perplexity'][-1] = 4.175
# -> two['perplexity'][-1] = 4.175

# %% [markdown]
# The losses, norms and perplexities are the same, with the second batch of each epoch, of which
# process 1 has no row. `batch_size=4` is that of all processes together, so the learning rate and
# the number of updates stay.
#
# ## What is sent
#
# Before an update, the processes add up the *sums* of their gradients and their numbers of tokens,
# and each divides once. `explain` says how many bytes a process sends for it. The gradients are 64
# numbers of 4 bytes. In a ring of N processes each sends 2 (N - 1) / N times that: first each part
# goes round to be summed, then to be known by all. N is 2 here. They are sent once an update,
# however many batches or micro-batches it is made from.

# %%
for line in two["told"]:
    print(line)
print(one["told"])
bytes_sent = 2 * (2 - 1) / 2 * 4 * (embedding.size + kernel.size)
print(f"{bytes_sent = :.0f}")
# -> processes: 2, each takes 1 of 2 rows of a batch
# -> sent for an update: 256 bytes by each process
# -> dropout: differs by process
# -> []
# -> bytes_sent = 256

# %% [markdown]
# Dropout differs between processes, as it differs between rows; this model has none. What else a
# program has to know (files, callbacks, several machines, what happens when a process fails) is in
# `docs/several_devices.md`.
#
# ## The loop that `fit` replaced
#
# By hand, each process computes the sum of its own rows. `dist.all_reduce` replaces a tensor by its
# sum over all processes: the gradients, the loss and the tokens. Then each divides. A process
# without rows has zeros to add, and must call `all_reduce` nevertheless: the others would wait for
# it for ever.

# %%
LOOP = """
import json
import sys
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
start = np.load(sys.argv[1])
x, y = torch.tensor(start["x"]), torch.tensor(start["y"])
weights = [torch.tensor(start[name], requires_grad=True) for name in ("embedding", "kernel")]
losses = []
for epoch in range(10):
    of_epoch = torch.zeros(2)                                           # loss, tokens
    for first in range(0, len(x), 4):
        inputs, labels = (t[first : first + 4][rank::size] for t in (x, y))
        logits = weights[0][inputs] @ weights[1]
        loss = F.cross_entropy(logits.mT, labels, ignore_index=0, reduction="sum")
        gradients = torch.autograd.grad(loss, weights)                  # zeros without rows
        sums = torch.stack([loss.detach(), (labels != 0).sum()])
        for tensor in (*gradients, sums):
            dist.all_reduce(tensor)                                     # sums over the processes
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients):
                weight -= 0.5 * gradient / sums[1]
        of_epoch += sums
    losses.append((of_epoch[0] / of_epoch[1]).item())
if rank == 0:
    print(json.dumps(losses))
dist.destroy_process_group()
"""
of_loop = run(LOOP, 2)
print(f"{of_loop[0] = :.4f}")
print(f"{of_loop[-1] = :.4f}")
# -> of_loop[0] = 3.8135
# -> of_loop[-1] = 1.4292
