# %% [markdown]
# # 7. Arka ucu (backend) değiştirmek
#
# Siz Keras yazarsınız. Hesabı PyTorch, JAX ya da TensorFlow yapar. Bu dosya üçü için de aynıdır ve
# aynı sayıları yazdırır:
#
#     python 7_swap_the_backend.py
#     KERAS_BACKEND=jax python 7_swap_the_backend.py
#     KERAS_BACKEND=tensorflow python 7_swap_the_backend.py
#
# Arka uç, Keras içe aktarılırken seçilir ve aynı programda sonradan değiştirilemez.
# `import keras_llm`, `import keras`tan önce gelir: `KERAS_BACKEND` başka bir arka uç belirtmiyorsa
# PyTorch'u seçer.

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
# ## Tensörler
#
# Bir model, arka ucunun tensörlerini döndürür. `keras.ops` her arka ucun tensörleriyle hesap yapar;
# `ops.convert_to_numpy` onları NumPy dizilerine çevirir. `torch.exp` çağıran bir program yalnızca
# PyTorch ile çalışır.

# %%
zeros = ops.zeros((2, 3, 7))
print(type(zeros).__module__.split(".")[0], type(zeros).__name__)
log_of_v = float(ops.logsumexp(zeros, axis=-1)[0, 0])
print(f"{log_of_v = :.6f}")
# -> torch Tensor
# -> log_of_v = 1.945910


# %% [markdown]
# ## Üçü için bir kayıp
#
# `keras.ops` ile yazdığınız kendi kaybınız da her arka uçta çalışır. Tek bir metot yazarsınız. Bu
# metot, her token'ın kaybını onun `nll` değerinden (etiketin -ln p değeri), `lse` değerinden
# (logit'lerinin log-sum-exp'i) ve logit'lerinin ortalamasından hesaplar. Buradaki kayıp, `nll`nin
# karesidir; olasılığı düşük etiketlerin kaybı daha da büyür.


# %%
@keras.saving.register_keras_serializable(package="guides")
class SquaredSurprise(keras_llm.losses.TokenLoss):
    def token_loss(self, nll, lse, mean_logit):
        return ops.square(nll)


squared = float(SquaredSurprise(ignore_index=0)(np.array([[1, 2, 0]]), ops.zeros((1, 3, 7))))
print(f"{squared = :.6f}")
# -> squared = 3.786566

# %% [markdown]
# ## Aynı eğitim
#
# Aynı tohumdan (seed) her arka uç farklı rastgele sayılar üretir. Karşılaştırılabilir sayılar elde
# etmek için ilk ağırlıkları NumPy ile üretiyoruz. Kendi eğitiminizde bu bir fark yaratmaz.

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
# ## Aynı olmayanlar
#
# - Hız. PyTorch katmanları yakalanmış tek bir çizge (graph) olarak çalıştırır; JAX ile TensorFlow
#   bütün adımı derler. Kendi makinenizde ölçün.
# - Aynı tohumdan gelen rastgele sayılar: ilk ağırlıklar, dropout.
# - 6. rehberdeki gibi kendi `train_step`iniz tek bir arka uç için yazılır.
#
# ## `fit`in yerini aldığı döngü
#
# Yukarıda hangi arka uç çalışmış olursa olsun, döngü PyTorch iledir ve aynı sayıyı verir.

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
