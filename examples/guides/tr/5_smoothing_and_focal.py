# %% [markdown]
# # 5. Etiket yumuşatma ve odaklı kayıp (focal loss)
#
# Çapraz entropi, model her etikete 1 olasılığını verdiğinde en küçüktür. İki kayıp bunu değiştirir:
#
# - **etiket yumuşatma (label smoothing)** 1'den biraz küçük bir olasılık ister; bu, aşırı öğrenmeyi
#   (overfitting) azaltır;
# - **odaklı kayıp (focal loss)**, modelin zaten iyi tahmin ettiği token'ların kaybını küçültür;
#   böylece ötekiler daha ağır basar.
#
# Dağarcık ne kadar büyük olursa olsun, ikisi de her token'ın üç sayısından hesaplanabilir. z
# logit'ler olmak üzere:
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
# -> nll = 0.574438

# %% [markdown]
# ## Etiket yumuşatma
#
# Yalın çapraz entropi, olasılıkları etikette 1, başka yerde 0 olan bir hedefle karşılaştırır.
# Yumuşatma e = 0,1 iken 1'in onda biri, etiketin kendisi de içinde olmak üzere V token'a eşit
# dağıtılır. Bu hedefle çapraz entropi şudur:
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
# -> smoothed_by_hand = 0.724438
# -> smoothed = 0.724438
# -> smoothed_by_torch = 0.724438

# %% [markdown]
# Etiketten fazla emin olan bir modelin kaybı artık büyüktür. Etiketin logit'i 100, ötekilerinki 0
# iken kayıp, yumuşatma yokken 0, varken 8'dir.
#
# Olabilecek en küçük kayıp artık 0 değildir. Hedefin entropisidir; burada hedef, etiket için 0,92,
# öteki dört token'ın her biri için 0,02'dir. Bu yüzden yumuşatmalı bir kaybı yumuşatmasız bir
# kayıpla karşılaştıramazsınız. Şaşkınlıkları karşılaştırabilirsiniz, çünkü onlar yumuşatmasız
# hesaplanır.
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
# -> too_sure = 8.000000
# -> least = 0.389673
# -> entropy = 0.389673

# %% [markdown]
# ## Odaklı kayıp
#
# p, etiketin olasılığı olsun:
#
#     odaklı kayıp = alpha * (1 - p)^gamma * nll
#
# gamma = 2 iken, modelin 0,9 verdiği bir token kaybının %1'ini korur; 0,1 verdiği bir token ise
# %81'ini. Çapraz entropide ikinci token'ın kaybı birincininkinin 22 katıdır, odaklı kayıpta 1.770
# katı. `gamma=0` çapraz entropidir. `alpha` bütün token'lar için tek bir çarpan (makalede 0,25) ya
# da her sınıf için bir çarpandır.


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
# -> easy = 0.001054
# -> hard = 1.865094
# -> hard_times_alpha = 0.466273
# -> np.log(0.1) / np.log(0.9) = 21.9
# -> hard / easy = 1770.2

# %% [markdown]
# ## Öğretmenden öğrenmek
#
# Damıtmada (distillation) küçük bir model, büyük bir modelden, yani öğretmenden öğrenir. Kayıp,
# etiket yerine öğretmenin bütün token'lar için verdiği q olasılıklarını kullanır. Kayıp,
# Kullback-Leibler ıraksamasıdır; iki modelin logit'leri de softmax'tan önce bir T sıcaklığına
# bölünür:
#
#     T^2 * toplam_j q_j * ln(q_j / p_j)

# %%
teacher = np.array([[3.0, 0.0, 1.0, 0.0, 0.0]], "float32")
q, p = (np.exp(z[0] / 2) / np.exp(z[0] / 2).sum() for z in (teacher, logits))
divergence_by_hand = 2**2 * (q * np.log(q / p)).sum()
distillation = losses.MaskedKLDivergence(temperature=2.0, target_from_logits=True)
divergence = float(distillation(teacher, logits))
print(f"{divergence_by_hand = :.6f}")
print(f"{divergence = :.6f}")
# -> divergence_by_hand = 0.172962
# -> divergence = 0.172961

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Etiket yumuşatmalı odaklı kayıp; dolgu maskelenmiştir. Önce `compile` ve `fit` ile:

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
# -> history['loss'][-1] = 0.129029
# -> history['perplexity'][-1] = 2.956767

# %% [markdown]
# PyTorch'ta token'lar için odaklı kayıp yoktur. Maskesiyle birlikte elle yazarsınız.

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
# -> loss.item() = 0.129029
# -> perplexity.item() = 2.956767
