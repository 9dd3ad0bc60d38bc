# %% [markdown]
# # 2. Token başına çapraz entropi ve maskeleme
#
# Model, dağarcıktaki her token'a bir puan verir: logit, z. Softmax bunları olasılığa çevirir:
#
#     p_j = exp(z_j) / toplam_k exp(z_k)
#
# Bir token'ın kaybı, etiketin olasılığının -ln'idir: model emin ve haklıysa 0, hiçbir fikri yoksa
# ln V, emin ama yanılmışsa sınırsız büyük. Yığının kaybı, N token üzerinden ortalamadır. y, one-hot
# (etikette 1, başka her yerde 0) olmak üzere ders kitapları bunu şöyle yazar:
#
#     kayıp = -(1/N) toplam_i toplam_j y_ij ln p_ij
#
# İçteki toplamda sıfırdan farklı tek terim vardır; onu etiket seçer, yani one-hot vektörlere
# gerek yoktur.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, models

# %% [markdown]
# ## Elle
#
# Dört konumlu tek satır, beş token'lık bir dağarcık. Son konum dolgudur: etiketi 0'dır ve modelin
# orada ne dediği hiç önemli olmamalıdır. Demek ki toplamda 3 terim var ve N = 3.

# %%
logits = np.array(
    [
        [
            [0.0, 2.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 3.0, 0.0],
            [9.0, 0, 0, 0, 0],
        ]
    ],
    "float32",
)
labels = np.array([[1, 2, 4, 0]])
probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
per_token = -np.log([probabilities[0, i, labels[0, i]] for i in range(4)])
counts = labels[0] != 0
by_hand = per_token[counts].sum() / counts.sum()
print(f"{per_token[0] = :.6f}")
print(f"{per_token[1] = :.6f}")
print(f"{per_token[2] = :.6f}")
print(f"{by_hand = :.6f}")

# %% [markdown]
# ## Kayıp sınıfıyla
#
# `ignore_index=0`, hangi etiketin dolgu olduğunu söyler. Bizim kaybımız `[yığın, uzunluk, V]`
# biçimini olduğu gibi alır; PyTorch'unki `[yığın * uzunluk, V]` biçimine düzleştirilmesini ister.
# İkisi de logit bekler ve softmax'ı kendisi uygular: sonunda softmax olan bir model için
# `from_logits=False` yazılmalıdır, yoksa softmax iki kez uygulanır.

# %%
by_loss = float(losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)(labels, logits))
flat_logits, flat_labels = torch.tensor(logits).view(-1, 5), torch.tensor(labels).view(-1)
by_torch = torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).item()
print(f"{by_loss = :.6f}")
print(f"{by_torch = :.6f}")

# %% [markdown]
# ## Maskeleme olmazsa ne bozulur?
#
# Dolguyu tahmin etmek kolaydır. Hesaba katılırsa kayıp küçük görünür ve model hak etmediği bir övgü
# alır. Kaybı sıfırlanıp N'de yine sayılırsa kayıp gene küçülür; yığında dolgu arttıkça daha da
# küçülür.
#
# Değeri 0 olan bir `sample_weight` de `ignore_index` kadar iyi maskeler. `reduction="sum"` bölmez;
# `"none"` her token için bir sayı verir.

# %%
padding_counts = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits))
divided_by_all = per_token[counts].sum() / labels.size
weighted = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits, counts[None]))
sum_of_tokens = float(
    losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, reduction="sum")(labels, logits)
)
print(f"{padding_counts = :.6f}")
print(f"{divided_by_all = :.6f}")
print(f"{weighted = :.6f}")
print(f"{sum_of_tokens = :.6f}")

# %% [markdown]
# ## Gradyan
#
# Logit'lere göre gradyan olabildiğince yalındır: (p - y) / N. Etiketin puanını 1'e ne kadar
# eksikse o kadar yukarı, ötekileri fazlaları kadar aşağı it. Dolguda gradyan 0'dır.

# %%
flat_logits.requires_grad_()
torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).backward()
gradient_of_label = flat_logits.grad[1, 2].item()
gradient_of_padding = flat_logits.grad[3].abs().max().item()
print(f"{gradient_of_label = :.6f}")
print(f"{gradient_of_padding = :.6f}")

# %% [markdown]
# ## Bir dönem boyunca
#
# Birer satırlık iki yığın: birinde yedi, ötekinde iki token var. Dönemin kaybı, dokuz token'ın
# toplamının bir kez bölünmesidir. İki yığın ortalamasının ortalaması ise başka bir sayıdır; onda
# iki token, yedi token kadar ağır basar.

# %%
x = np.array([[1, 2, 3, 4, 1, 3, 2], [3, 1, 0, 0, 0, 0, 0]])
y = np.array([[2, 3, 4, 1, 3, 2, 4], [1, 4, 0, 0, 0, 0, 0]])
keras.utils.set_random_seed(0)
model = models.LanguageModel(keras.layers.Embedding(5, 8, "normal"), keras.layers.Dense(5))
model(x)
start = [np.array(weight) for weight in model.get_weights()]
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=1.0),
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
)
history = model.fit(x, y, batch_size=1, epochs=3, shuffle=False, verbose=0).history
print(f"{history['loss'][0] = :.6f}")
print(f"{history['loss'][-1] = :.6f}")

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Çoğu döngü `total_loss` değerini yığın sayısına böler. Bu döngü toplamı ve token sayısını tutar.

# %%
network = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
embedding, kernel, bias = map(torch.tensor, start)
network.load_state_dict({"0.weight": embedding, "1.weight": kernel.T, "1.bias": bias})
optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
criterion = torch.nn.CrossEntropyLoss(ignore_index=0)

for _ in range(3):
    total_loss, tokens, means = 0.0, 0, []
    for inputs, targets in zip(torch.tensor(x), torch.tensor(y), strict=True):
        optimizer.zero_grad()
        loss = criterion(network(inputs), targets)
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * (targets != 0).sum().item()
        tokens += (targets != 0).sum().item()
        means.append(loss.item())
print(f"{total_loss / tokens = :.6f}")
print(f"{sum(means) / len(means) = :.6f}")
