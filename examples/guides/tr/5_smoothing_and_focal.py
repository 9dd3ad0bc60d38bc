# %% [markdown]
# # 5. Etiket yumuşatma ve odaklı kayıp (focal loss)
#
# Çapraz entropi, modelden her etikette tam emin olmasını ister. Bunda yapılabilecek iki değişiklik:
#
# - **etiket yumuşatma (label smoothing)**, biraz daha az emin olmasını ister; aşırı öğrenmeye
#   (overfitting) karşıdır;
# - **odaklı kayıp (focal loss)**, bildiği token'ları daha az sorar; böylece seyrek olanlar daha
#   ağır basar.
#
# Dağarcık ne kadar büyük olursa olsun, ikisi de bir token'ın üç sayısıyla yazılır; z logit'lerdir:
#
#     nll = -ln p(etiket)      lse = ln toplam_j exp(z_j)      mean = ortalama_j z_j

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models

logits = np.array([[2.0, 0.0, 1.0, -1.0, 0.5]], "float32")
label = np.array([0])
lse = np.log(np.exp(logits[0]).sum())
nll = lse - logits[0, 0]
print(f"{nll = :.6f}")

# %% [markdown]
# ## Etiket yumuşatma
#
# e = 0,1 iken hedef artık etikette 1, başka yerde 0 değildir: onda biri, etiketin kendisi de içinde
# olmak üzere V token'a eşit dağıtılır. Bu hedefle çapraz entropi şudur:
#
#     S = (1 - e) * nll + e * (lse - mean)

# %%
smoothed_by_hand = 0.9 * nll + 0.1 * (lse - logits[0].mean())
smoothing = losses.MaskedSparseCategoricalCrossentropy(label_smoothing=0.1)
smoothed = float(smoothing(label, logits))
smoothed_by_torch = torch.nn.functional.cross_entropy(
    torch.tensor(logits), torch.tensor(label), label_smoothing=0.1
).item()
print(f"{smoothed_by_hand = :.6f}")
print(f"{smoothed = :.6f}")
print(f"{smoothed_by_torch = :.6f}")

# %% [markdown]
# Artık aşırı eminliğin bir bedeli var. Etikete 100'lük bir logit vermek, doğru olsa da, yumuşatma
# yokken 0, varken 8 tutar. Olabilecek en küçük kayıp 0 değil, hedefin entropisidir: etikete 0,92,
# öteki dört token'a 0,02'şer. Bu yüzden yumuşatmalı ve yumuşatmasız kayıplar birbiriyle
# karşılaştırılamaz; şaşkınlıklar karşılaştırılabilir, çünkü onlar hiç yumuşatılmaz.
#
# Çeviride alışılmış değer 0,1'dir. Dil modelleri çoğunlukla yumuşatmasız eğitilir.

# %%
too_sure = float(smoothing(label, np.array([[100.0, 0, 0, 0, 0]], "float32")))
target = np.array([[0.92, 0.02, 0.02, 0.02, 0.02]])
least = float(smoothing(label, np.log(target).astype("float32")))
entropy = -(target * np.log(target)).sum()
print(f"{too_sure = :.6f}")
print(f"{least = :.6f}")
print(f"{entropy = :.6f}")

# %% [markdown]
# ## Odaklı kayıp
#
# p, etiketin olasılığı olsun:
#
#     odaklı kayıp = alpha * (1 - p)^gamma * nll
#
# gamma = 2 iken, modelin 0,9 verdiği bir token eskisinin yüzde biri kadar tutar; 0,1 verdiği ise
# eskisinin %81'ini korur. Çapraz entropi ikincisini 22 kat önemli bulur, odaklı kayıp 1.770 kat.
# `gamma=0` çapraz entropidir. `alpha` tek bir sayı ya da her sınıf için bir sayıdır; makaledeki
# değeri 0,25'tir.


# %%
def with_probability(p):
    """Logits whose softmax gives the label, 0, the probability p."""
    return np.log([[p, 1 - p]]).astype("float32")


focal = losses.MaskedSparseCategoricalFocalCrossentropy(gamma=2.0)
easy, hard = float(focal(label, with_probability(0.9))), float(focal(label, with_probability(0.1)))
quarter = losses.MaskedSparseCategoricalFocalCrossentropy(gamma=2.0, alpha=0.25)
hard_times_alpha = float(quarter(label, with_probability(0.1)))
print(f"{easy = :.6f}")
print(f"{hard = :.6f}")
print(f"{hard_times_alpha = :.6f}")
print(f"{np.log(0.1) / np.log(0.9) = :.1f}")
print(f"{hard / easy = :.1f}")

# %% [markdown]
# ## Öğretmenden öğrenmek
#
# Damıtmada (distillation) etiketin yerini büyük bir modelin bütün dağılımı, q alır. Kayıp, T
# sıcaklığıyla yumuşatılmış Kullback-Leibler ıraksamasıdır: T^2 * toplam_j q_j * ln(q_j / p_j).

# %%
teacher = np.array([[3.0, 0.0, 1.0, 0.0, 0.0]], "float32")
q, p = (np.exp(z[0] / 2) / np.exp(z[0] / 2).sum() for z in (teacher, logits))
divergence_by_hand = 2**2 * (q * np.log(q / p)).sum()
distillation = losses.MaskedKLDivergence(temperature=2.0, target_from_logits=True)
divergence = float(distillation(teacher, logits))
print(f"{divergence_by_hand = :.6f}")
print(f"{divergence = :.6f}")

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Yumuşatılmış etiketlerle odaklı kayıp, dolgu maskelenmiş olarak. Önce `compile`.

# %%
x = np.array([[1, 2, 3, 1, 2, 4], [2, 3, 1, 2, 0, 0]])
y = np.array([[2, 3, 1, 2, 4, 1], [3, 1, 2, 4, 0, 0]])
keras.utils.set_random_seed(0)
model = models.LanguageModel(keras.layers.Embedding(5, 8), keras.layers.Dense(5))
model(x)
embedding, kernel, bias = (torch.tensor(np.array(weight)) for weight in model.get_weights())
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=0.1, momentum=0.9),
    loss=losses.MaskedSparseCategoricalFocalCrossentropy(
        gamma=2.0, alpha=0.25, label_smoothing=0.1, ignore_index=0
    ),
    metrics=[metrics.Perplexity(ignore_index=0)],
)
history = model.fit(x, y, epochs=20, verbose=0).history
print(f"{history['loss'][-1] = :.6f}")
print(f"{history['perplexity'][-1] = :.6f}")

# %% [markdown]
# PyTorch'ta token'lar için odaklı kayıp yoktur: maskesiyle birlikte elle yazılır.

# %%
network = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
network.load_state_dict({"0.weight": embedding, "1.weight": kernel.T, "1.bias": bias})
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
inputs, labels = torch.tensor(x), torch.tensor(y)
mask = labels != 0

for _ in range(20):
    optimizer.zero_grad()
    log_p = network(inputs).log_softmax(-1)
    log_p_label = log_p.gather(-1, labels[..., None])[..., 0]
    cross_entropy = -(0.9 * log_p_label + 0.1 * log_p.mean(-1))
    per_token = 0.25 * (1 - log_p_label.exp()) ** 2 * cross_entropy
    loss = (per_token * mask).sum() / mask.sum()
    loss.backward()
    optimizer.step()
perplexity = torch.exp(-(log_p_label * mask).sum() / mask.sum())
print(f"{loss.item() = :.6f}")
print(f"{perplexity.item() = :.6f}")
