# %% [markdown]
# # 4. AdamW, Adafactor ve sayıları
#
# Gradyan, kaybın hangi yönde büyüdüğünü söyler. Eniyileyici, ters yönde ne kadar gidileceğine karar
# verir. Yalın SGD `öğrenme oranı * gradyan` kadar gider; bu, transformer'lara pek uymaz: bir gömme
# (embedding) matrisinin gradyanı ile bir norm katmanınınki arasında kat kat fark vardır, tek bir
# öğrenme oranı ikisine birden yaramaz. Adam her ağırlığın gradyanını, o gradyanın alışılmış
# büyüklüğüne böler.
#
# AdamW, ağırlık sönümü ayrı tutulan Adam'dır. Sönümsüz Adam küçük denemelere yeter; SGD dil
# modellerinde seyrek kullanılır. AdamW, t. güncellemede ve g gradyanıyla:
#
#     m = beta_1 * m + (1 - beta_1) * g            gradyanların ortalaması: ne yöne
#     v = beta_2 * v + (1 - beta_2) * g^2          karelerinin ortalaması: ne büyüklükteler
#     p = p * (1 - lr * weight_decay)              ağırlık sönümü, gradyandan ayrı
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
# ## İlk güncelleme, elle
#
# İlk güncellemede m / sqrt(v) oranı g / |g| olur: gradyanı ister 5 ister 0,0005 olsun, her ağırlık
# öğrenme oranı kadar yol alır. Yani `learning_rate` bir uzaklıktır ve bütün sayıların en
# önemlisidir. Ondan önce, değeri 1 olan ağırlık kendisinin lr * weight_decay kadarını yitirir.

# %%
by_hand = 1.0 * (1 - 0.01 * 0.1) - 0.01
of_a_large_gradient = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[5.0]])[0, 0]
of_a_small_gradient = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[0.0005]])[0, 0]
print(f"{by_hand = :.5f}")
print(f"{of_a_large_gradient = :.5f}")
print(f"{of_a_small_gradient = :.5f}")

# %% [markdown]
# ## Alışılmış değerler
#
# | argüman | alışılmış değer | neden |
# | --- | --- | --- |
# | `learning_rate` | ince ayarda 5e-5 – 1e-4; sıfırdan 3e-4 – 1e-3 | model büyüdükçe küçülür |
# | `beta_1` | 0.9 | 1 / (1 - 0,9) = 10 gradyan anımsar |
# | `beta_2` | 0.999 | 1.000 gradyan anımsar; büyük yığınlarda 0.95 |
# | `epsilon` | 1e-8 | sıfıra bölmeyi önler |
# | `weight_decay` | 0.01 – 0.1 | yalnızca matrislere: bias ve norm'ları küçültmenin anlamı yok |
# | `global_clipnorm` | 1.0 | gradyan kırpma: tuhaf tek bir yığın modeli savuramaz |
#
# On kat büyük bir öğrenme oranıyla kayıp sıçrar ya da NaN olur; on kat küçüğüyle model neredeyse
# hiç öğrenmez.
#
# ## Önce ısınma (warm-up), sonra azalma (decay)
#
# Başlangıçta v çok az gradyandan oluşur; bu yüzden ilk adımlar küçük başlar ve büyür. Sonda yeniden
# küçülürler ve model durulur. Burada: 500 güncelleme boyunca yukarı, sonra 10.000. güncellemeye
# kadar düz bir çizgiyle aşağı.

# %%
schedule = schedules.WarmupLinearDecay(5e-5, warmup_steps=500, total_steps=10_000)
print(f"{float(schedule(250)) = :.3e}")
print(f"{float(schedule(500)) = :.3e}")
print(f"{float(schedule(5_250)) = :.3e}")
print(f"{float(schedule(10_000)) = :.3e}")

# %% [markdown]
# ## Adafactor: aynı düşünce, neredeyse sıfır bellek
#
# AdamW, m ile v'yi tutar: 4 baytlık her ağırlık için 8 bayt. Adafactor bir matrisin her satırı için
# bir ortalama (R), her sütunu için bir ortalama (C) tutar ve v yerine R * C / ortalama(R) kullanır.
# m tutmaz.


# %%
def bytes_of_state(optimizer):
    """Of a matrix of 512 x 512, per weight."""
    optimizer.build([keras.Variable(np.zeros((512, 512), "float32"))])
    matrices = [v for v in optimizer.variables if len(v.shape)]
    return sum(4 * np.prod(v.shape) for v in matrices) / 512**2


print(f"{bytes_of_state(optimizers.AdamW()) = :.4f}")
print(f"{bytes_of_state(optimizers.Adafactor()) = :.4f}")

# %% [markdown]
# Öğrenme oranı kendinden olabilir; o zaman siz vermezsiniz:
#
# - `relative_step=True`: 1 / sqrt(t), ama en çok 0,01; `warmup_init=True` ise en çok 1e-6 * t;
# - `scale_parameter=True`: ağırlıkların büyüklüğüyle (karelerinin ortalamasının karekökü, en az
#   `epsilon_2` = 0,001) çarpılır: büyük ağırlıklar büyük adım atar;
# - `clip_threshold=1.0`: büyüklüğü bunu aşan güncelleme küçültülür;
# - `epsilon_1` = 1e-30, gradyan karelerine eklenir.
#
# Hepsi 2 olan ağırlıklar ve birbirine eşit gradyanlarla elle hesap kolaydır: R * C / ortalama(R)
# g^2 olur, güncelleme 1'dir, ilk adım da 0,01 * 2'dir; ısınırken 1e-6 * 2.

# %%
twos, gradient = np.full((4, 4), 2.0), np.full((4, 4), 0.3)
step = 2 - updated(optimizers.Adafactor(), twos, gradient)[0, 0]
first_warmup_step = 2 - updated(optimizers.Adafactor(warmup_init=True), twos, gradient)[0, 0]
print(f"{step = :.5f}")
print(f"{first_warmup_step = :.1e}")

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Isınmalı ve azalmalı AdamW, ikişer yığınlık on dönem. Önce `fit`.

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
# PyTorch'ta öğrenme oranı çizelgesi (scheduler), birinin adım attırmayı unutmaması gereken bir
# nesnedir; sönüm uygulanmayacak ağırlıklar da birinin hazırlamayı unutmaması gereken bir listedir.

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
