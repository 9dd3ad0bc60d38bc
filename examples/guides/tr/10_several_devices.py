# %% [markdown]
# # 10. Birden çok aygıt
#
# Tek aygıtta eğiten bir program, hiç değişmeden birden çok aygıtta da eğitir. PyTorch'un
# başlatıcısı `torchrun` onu her aygıt için bir kez başlatır; `import keras_llm` öteki süreçleri
# bulur:
#
#     torchrun --nproc-per-node=2 program.py
#
# Her süreç, her yığının kendine düşen satırlarını alır. Bu kılavuz, sayılar tek sürecinkilerle aynı
# olsun diye süreçlerin birbirine ne söylemesi gerektiğini gösterir. CPU'da iki süreç başlatır; bu,
# tek süreçten yavaştır: burada baktığımız sayılardır.
#
# Birden çok süreç PyTorch ister; bu kılavuz yalnızca o arka uçla çalışır.

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
# ## Satırlar
#
# Beş satır; sırasıyla 10, 36, 14, 37 ve 5 token'ı sayılır, 0 dolgudur. Bir yığında dört satır
# vardır; öyleyse bir dönemin ikinci yığınında tek satır kalır. 0 numaralı süreç bir yığının 0, 2,
# ... satırlarını, 1 numaralı süreç 1, 3, ... satırlarını alır: ilk yığında 24 ve 73 token'ları
# olur, ikinci yığında 1 numaralı sürecin hiç satırı yoktur.
#
# 0 numaralı sürecin satırlarındaki token'lar ötekininkilerden başkadır; böylece kayıpları farklı
# olur.

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
# ## Ortalamaların ortalaması, ortalama değildir
#
# Bir yığının kaybı, 97 token'ı üzerindeki toplamın 97'ye bölümüdür. Her süreç kendi token sayısına
# böler, sonra iki ortalamanın ortalaması alınırsa, 24 token 73 token kadar ağır basar. Her sürecin
# kendi ortalamasında `loss.backward()` çağırdığı ve *gradyanların* ortalamasının alındığı yerde,
# örneğin PyTorch'un `DistributedDataParallel`'inde olan budur. Gradyan o zaman yanlıştır ve bunu
# size söyleyen olmaz.


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
# ## Aynı program: bir kez, iki kez
#
# Aşağıdaki program süreçlerden habersizdir; yalnızca son satırları bilir, çünkü her süreç
# yazdıracak olurdu: ilki yazdırır. Program önce olduğu gibi, sonra `torchrun` ile iki süreç olarak
# başlatılır.

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
# Kayıplar, normlar ve şaşkınlıklar aynıdır; her dönemin, 1 numaralı sürecin satırsız kaldığı ikinci
# yığınıyla birlikte. `batch_size=4` bütün süreçlerin toplamıdır; bu yüzden öğrenme oranı da
# güncelleme sayısı da değişmez.
#
# ## Ne gönderilir?
#
# Süreçler bir güncellemeden önce gradyanlarının *toplamlarını* ve token sayılarını toplar; her biri
# bir kez böler. `explain`, bir sürecin bunun için kaç bayt gönderdiğini söyler. Gradyanlar 4
# baytlık 64 sayıdır. N süreçlik bir halkada her süreç bunun 2 (N - 1) / N katını gönderir: her
# parça önce toplanmak için, sonra herkesçe bilinmek için dolaşır. Burada N 2'dir. Gradyanlar,
# güncelleme kaç yığından ya da mikro yığından oluşursa oluşsun, güncelleme başına bir kez
# gönderilir.

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
# Dropout, satırdan satıra olduğu gibi süreçten sürece de farklıdır; bu modelde dropout yoktur. Bir
# programın bunlardan başka bilmesi gerekenler (dosyalar, callback'ler, birden çok makine, bir süreç
# düşünce ne olduğu) `docs/several_devices.md` dosyasındadır.
#
# ## `fit`'in yerini aldığı döngü
#
# Elle yazıldığında her süreç kendi satırlarının toplamını hesaplar. `dist.all_reduce` bir tensörün
# yerine onun bütün süreçlerdeki toplamını koyar: gradyanların, kaybın ve token sayısının. Sonra her
# süreç böler. Satırı olmayan bir sürecin ekleyecek sıfırları vardır ve `all_reduce`'u yine de
# çağırması gerekir: yoksa ötekiler onu sonsuza dek bekler.

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
