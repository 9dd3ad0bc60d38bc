# %% [markdown]
# # 4. AdamW, Adafactor ve ayarları
#
# Gradyan, kaybın büyüdüğü yönü gösterir. Eniyileyici her ağırlığı ters yönde değiştirir ve ne kadar
# değiştireceğine karar verir. Yalın SGD onu `öğrenme oranı * gradyan` kadar değiştirir. Bir
# transformer'da farklı katmanların gradyanları arasında kat kat fark vardır; tek bir öğrenme oranı
# hepsine uymaz. Adam her ağırlığın gradyanını, o gradyanın alışılmış büyüklüğüne böler; böylece
# bütün ağırlıklar benzer hızla değişir.
#
# AdamW, ağırlık sönümü eklenmiş Adam'dır. Ağırlık sönümü olmayan Adam küçük denemeler için
# yeterlidir; SGD dil modellerinde seyrek kullanılır. AdamW, t. güncellemede ve g gradyanıyla:
#
#     m = beta_1 * m + (1 - beta_1) * g            gradyanların hareketli ortalaması: yön
#     v = beta_2 * v + (1 - beta_2) * g^2          karelerinin hareketli ortalaması: büyüklük
#     p = p * (1 - lr * weight_decay)              ağırlık sönümü; gradyanın bunda payı yoktur
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
# İlk güncellemede, yukarıdaki gibi düzeltilmiş m / sqrt(v), g / |g|'dir. Yani gradyanı ister 5
# ister 0,0005 olsun, her ağırlık öğrenme oranı kadar değişir. Bu yüzden `learning_rate` bir
# uzaklıktır ve en önemli ayardır. Önce ağırlık sönümü uygulanır: değeri 1 olan ağırlık, değerinin
# lr * weight_decay kadarını yitirir.

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
# ## Alışılmış ayarlar
#
# | argüman | alışılmış değer | neden |
# | --- | --- | --- |
# | `learning_rate` | ince ayarda 5e-5 – 1e-4; sıfırdan 3e-4 – 1e-3 | büyük modellerde daha küçük |
# | `beta_1` | 0.9 | yaklaşık 1 / (1 - 0,9) = 10 gradyanın ortalaması |
# | `beta_2` | 0.999 | yaklaşık 1.000 gradyanın ortalaması; büyük yığınlarda 0.95 |
# | `epsilon` | 1e-8 | sıfıra bölmeyi önler |
# | `weight_decay` | 0.01 – 0.1 | matrislerin ağırlıklarını küçük tutar; aşağıya bakın |
# | `global_clipnorm` | 1.0 | alışılmadık bir yığının neyi değiştirebileceğini sınırlar |
#
# On kat büyük bir öğrenme oranıyla kayıp sıçrar ya da NaN olur. On kat küçüğüyle model neredeyse
# hiç öğrenmez.
#
# ## Bias ve norm'lara neden ağırlık sönümü uygulanmaz?
#
# Ağırlık sönümü, bir katmanın az sayıda büyük ağırlığa dayanmasını önler. Bir matris girdilerini
# çarpar: ağırlıkları ne kadar büyükse, girdideki küçük bir değişiklik çıktıyı o kadar çok
# değiştirir. Küçük ağırlıklar daha düzgün bir fonksiyon verir; o da çoğunlukla daha iyi geneller.
#
# Bu gerekçe, modelin vektörleri için geçerli değildir:
#
# - **Bias** çarpılmaz, eklenir. Çıktıyı kaydırır; bias ne kadar büyük olursa olsun çıktı girdiye
#   eskisi gibi tepki verir.
# - **Norm katmanının ölçeği (scale)** 1 ile başlar ve 1 civarında işini yapar. Sönüm onu 0'a
#   çekerdi; 0 olan bir ölçek, ardındaki katmanı kapatır.
#
# Sayıları da azdır, çoğunlukla ağırlıkların yüzde birinden az; model onlarda pek bir şey
# ezberleyemez. Örneğin BERT'in yayımlanan eğitim kodu ikisini de sönümün dışında bırakır.
# `optimizers.AdamW` sönümü yalnızca matrislere uygular; `decay_vectors=True` hepsine uygular.
# Aşağıdaki kodda gradyan 0'dır; değeri 1 olan ağırlığı yalnızca sönüm değiştirir.

# %%
of_a_matrix = updated(optimizers.AdamW(0.01, weight_decay=0.1), [[1.0]], [[0.0]])[0, 0]
of_a_vector = updated(optimizers.AdamW(0.01, weight_decay=0.1), [1.0], [0.0])[0]
print(f"{of_a_matrix = :.5f}")
print(f"{of_a_vector = :.5f}")
# -> of_a_matrix = 0.99900
# -> of_a_vector = 1.00000

# %% [markdown]
# ## Önce ısınma (warm-up), sonra azalma (decay)
#
# İlk güncellemelerde m ile v az sayıda gradyanın ortalamasıdır; yönleri ve büyüklükleri henüz
# güvenilir değildir. Bu yüzden öğrenme oranı 0'a yakın başlar ve büyür: ısınma. Sona doğru yeniden
# küçülür ve kayıp durulur. Burada 500 güncelleme boyunca büyür, sonra düz bir çizgiyle azalıp
# 10.000. güncellemede 0 olur.

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
# ## Adafactor: aynı düşünce, neredeyse sıfır bellek
#
# AdamW, m ile v'yi tutar: kendisi 4 bayt olan her ağırlık için 8 bayt. Adafactor bir matrisin her
# satırı (R) ve her sütunu (C) için karelerin bir ortalamasını tutar. v yerine R * C / ortalama(R)
# kullanır; m tutmaz.


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
# Adafactor öğrenme oranını kendisi belirleyebilir; o zaman sizin vermeniz gerekmez:
#
# - `relative_step=True`: oran 1 / sqrt(t)'dir, en çok 0,01. `warmup_init=True` ise en çok 1e-6 * t
#   olur;
# - `scale_parameter=True`: oran, ağırlıkların büyüklüğüyle (karelerinin ortalamasının karekökü, en
#   az `epsilon_2` = 0,001) çarpılır. Büyük ağırlıklar daha çok değişir;
# - `clip_threshold=1.0`: kareler ortalamasının karekökü bundan büyük olan güncelleme, buna
#   küçültülür;
# - `epsilon_1` = 1e-30, gradyanların karelerine eklenir.
#
# Elle bir örnek: bütün ağırlıklar 2, bütün gradyanlar birbirine eşit. O zaman R * C / ortalama(R)
# g^2'dir ve güncelleme 1'dir. İlk adım 0,01 * 2 = 0,02'dir; `warmup_init=True` ile 1e-6 * 2'dir.

# %%
twos, gradient = np.full((4, 4), 2.0), np.full((4, 4), 0.3)
step = 2 - updated(optimizers.Adafactor(), twos, gradient)[0, 0]
first_warmup_step = 2 - updated(optimizers.Adafactor(warmup_init=True), twos, gradient)[0, 0]
print(f"{step = :.5f}")
print(f"{first_warmup_step = :.1e}")
# -> step = 0.02000
# -> first_warmup_step = 2.0e-06

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Isınmalı ve azalmalı AdamW, ikişer yığınlık on dönem. Önce `fit` ile:

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
# PyTorch'ta her güncellemeden sonra `scheduler.step()`i siz çağırırsınız; sönüm uygulanmayacak
# ağırlıkları da ayrı bir gruba siz koyarsınız.

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
