# %% [markdown]
# # 2. Token başına çapraz entropi ve maskeleme
#
# Model, dağarcıktaki her token'a bir puan verir: logit, z. Softmax puanları olasılığa çevirir:
#
#     p_j = exp(z_j) / toplam_k exp(z_k)
#
# Bir token'ın kaybı -ln p(etiket)'tir. Model etikete 1 olasılığını verirse 0'dır; V token'ın hepsi
# eşit olasıysa ln V'dir. p(etiket) 0'a yaklaştıkça sınırsız büyür.
#
# Bir yığının kaybı, N token'ının ortalamasıdır. Ders kitapları bunu, etikette 1, başka her yerde 0
# olan y ile (one-hot) yazar:
#
#     kayıp = -(1/N) toplam_i toplam_j y_ij ln p_ij
#
# İçteki toplamda etiketin terimi dışındaki bütün terimler 0'dır. Bu yüzden kod yalnızca etiketin
# p'sini alır; one-hot vektörler oluşturmaz.

# %%
import warnings

import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch
from keras import ops

from keras_llm import losses, models

# %% [markdown]
# ## Elle
#
# Dört konumlu tek bir satır ve beş token'lık bir dağarcık. Son konum dolgudur: etiketi 0'dır ve
# modelin orada ne tahmin ettiği kaybı değiştirmemelidir. Demek ki toplamda 3 terim var ve N = 3.

# %%
logits = np.array(
    [
        [
            [0.0, 2.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 3.0, 0.0],
            [2.0, 0.0, 0.0, 0.0, 0.0],
        ]
    ],
    "float32",
)
labels = np.array([[1, 2, 4, 0]])
probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
per_token = -np.log([probabilities[0, i, labels[0, i]] for i in range(4)])
is_text = labels[0] != 0
by_hand = per_token[is_text].sum() / is_text.sum()
print(f"{per_token[0] = :.6f}")
print(f"{per_token[1] = :.6f}")
print(f"{per_token[2] = :.6f}")
print(f"{by_hand = :.6f}")
# -> per_token[0] = 0.573172
# -> per_token[1] = 1.609438
# -> per_token[2] = 3.250522
# -> by_hand = 1.811044

# %% [markdown]
# ## Kayıp sınıfıyla
#
# `ignore_index=0`, hangi etiketin dolgu olduğunu söyler. Bizim kaybımız logit'leri `[yığın,
# uzunluk, V]` biçiminde alır; PyTorch'unki `[yığın * uzunluk, V]` biçiminde ister. İkisi de logit
# alır ve softmax'ı kendisi uygular. Modelinizin sonunda softmax varsa `from_logits=False` yazın;
# yoksa softmax iki kez uygulanır.

# %%
by_loss = float(losses.MaskedSparseCategoricalCrossentropy(ignore_index=0)(labels, logits))
flat_logits, flat_labels = torch.tensor(logits).view(-1, 5), torch.tensor(labels).view(-1)
by_torch = torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).item()
print(f"{by_loss = :.6f}")
print(f"{by_torch = :.6f}")
# -> by_loss = 1.811044
# -> by_torch = 1.811044

# %% [markdown]
# ## Dolguyla ilgili iki hata
#
# 1. **Dolgu metin gibi sayılır.** Dolguyu tahmin etmek kolaydır; kaybı küçüktür ve ortalamayı
#    küçültür: `padding_counts`.
# 2. **Dolgunun kaybı 0 yapılır, ama dolgu N'de yine sayılır.** Ortalama yine fazla küçük çıkar ve
#    dolgusu çok olan yığının kaybı daha küçük görünür: `divided_by_all`.
#
# Değeri 0 olan bir `sample_weight`, bir token'ı tam `ignore_index` gibi maskeler: `weighted`.
# `reduction="sum"` ile bölme yapılmaz; `"none"` her token için bir kayıp döndürür.

# %%
padding_counts = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits))
divided_by_all = per_token[is_text].sum() / labels.size
weighted = float(losses.MaskedSparseCategoricalCrossentropy()(labels, logits, is_text[None]))
sum_of_tokens = float(
    losses.MaskedSparseCategoricalCrossentropy(ignore_index=0, reduction="sum")(labels, logits)
)
print(f"{padding_counts = :.6f}")
print(f"{divided_by_all = :.6f}")
print(f"{weighted = :.6f}")
print(f"{sum_of_tokens = :.6f}")
# -> padding_counts = 1.466447
# -> divided_by_all = 1.358283
# -> weighted = 1.811044
# -> sum_of_tokens = 5.433133

# %% [markdown]
# ## Gradyan
#
# Kaybın logit'lere göre gradyanı şudur:
#
#     d kayıp / d z_ij = (p_ij - y_ij) / N
#
# Etikette (p - 1) / N'dir, yani negatiftir. Öteki bütün token'larda p / N'dir, yani pozitiftir.
# Eniyileyici logit'leri gradyanın tersi yönünde değiştirir: etiketin logit'ini yükseltir, ötekileri
# düşürür. Etiketin olasılığı ne kadar küçükse değişim o kadar büyüktür. Dolguda gradyan 0'dır.

# %%
flat_logits.requires_grad_()
torch.nn.CrossEntropyLoss(ignore_index=0)(flat_logits, flat_labels).backward()
gradient_of_label = flat_logits.grad[1, 2].item()
gradient_of_another = flat_logits.grad[1, 0].item()
gradient_of_padding = flat_logits.grad[3].abs().max().item()
print(f"{gradient_of_label = :.6f}")
print(f"{gradient_of_another = :.6f}")
print(f"{gradient_of_padding = :.6f}")
# -> gradient_of_label = -0.266667
# -> gradient_of_another = 0.066667
# -> gradient_of_padding = 0.000000

# %% [markdown]
# ## Dolgu ve dikkat (attention)
#
# Kaybı maskelemek işin yarısıdır. Öteki yarısı, modelin ne okuduğudur. Bir çözücüde (decoder) her
# token kendisini ve kendinden önceki token'ları görür:
#
# - Metinden **sonraki** dolgu hiçbir şeyi değiştirmez: metnin hiçbir token'ı onu görmez. Alışılmış
#   durum budur ve maske gerektirmez.
# - Metinden **önceki** dolgu metin gibi görülür ve her token'ın logit'lerini değiştirir. `pad_id=0`
#   onu dikkatin dışında bırakır.
#
# Kodlayıcıda (encoder) her token bütün satırı görür; bu yüzden dolgu her zaman dışarıda
# bırakılmalıdır: `Seq2SeqTransformer` için `pad_id=0` varsayılan değerdir.
#
# Sayılar, bir satıra iki dolgu token'ı eklenince bir logit'in en çok ne kadar değiştiğini gösterir.


# %%
def largest_change(padded, text, pad_id=None):
    """How much the logits of [1, 2, 3] change in a padded row, where `text` is their place."""
    model = models.CausalTransformer(5, 8, num_layers=1, num_heads=2, max_length=8, pad_id=pad_id)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, weight.shape) for weight in model.weights])
    alone, padded = (ops.convert_to_numpy(model(np.array([row]))) for row in ([1, 2, 3], padded))
    return np.abs(padded[:, text] - alone).max()


padding_after = largest_change([1, 2, 3, 0, 0], slice(0, 3))
padding_before = largest_change([0, 0, 1, 2, 3], slice(2, 5))
padding_before_masked = largest_change([0, 0, 1, 2, 3], slice(2, 5), pad_id=0)
print(f"{padding_after = :.4f}")
print(f"{padding_before = :.4f}")
print(f"{padding_before_masked = :.4f}")
# -> padding_after = 0.0000
# -> padding_before = 0.9297
# -> padding_before_masked = 0.0000

# %% [markdown]
# ## Dolgu ve eğitim
#
# Dolgu sayılırsa model onu da tahmin etmek üzere eğitilir. Buradaki satırlarda her metin 3
# token'ıyla biter ve ardından dolgu gelir. 50 güncelleme sonra, dolguyu sayan model 3'ten sonra
# dolgu geldiğinden neredeyse emindir; metin üretirken dolgu yazardı. Dolguyu saymayan model ise
# 3'ten sonra ne geldiğini hiç öğrenmemiştir: olasılık hâlâ 1/5'tir.
#
# Bu yüzden metnin sonu için, dolgu id'sinden ayrı bir token gerekir. Yoksa model nerede duracağını
# öğrenemez.
#
# Dolgu sayılırsa `fit` uyarır. Burada hata bilerek yapılıyor ve uyarı kapatılıyor.

# %%
rows = np.array([[1, 2, 3, 0, 0, 0], [2, 4, 1, 3, 0, 0]])
p_of_padding = {}
for ignore_index in (-100, 0):
    model = models.LanguageModel(keras.layers.Embedding(5, 5, "zeros"), keras.layers.Identity())
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=ignore_index),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(rows[:, :-1], rows[:, 1:], epochs=50, verbose=0)
    probabilities = ops.convert_to_numpy(ops.softmax(model(np.array([[3]]))))
    p_of_padding[ignore_index] = probabilities[0, 0, 0]
print(f"{p_of_padding[-100] = :.4f}")
print(f"{p_of_padding[0] = :.4f}")
# -> p_of_padding[-100] = 0.9038
# -> p_of_padding[0] = 0.2000

# %% [markdown]
# ## Bir dönem boyunca
#
# Aynı kural bir dönem için de geçerlidir: bütün token'ların kayıpları toplanır ve token sayısına
# bir kez bölünür. Burada bir dönem, birer satırlık iki yığındır. İlk satırda 7 token, ikincide 2
# token vardır, gerisi dolgudur. Demek ki dönemin kaybı, 9 kaybın toplamının 9'a bölümüdür.
#
# `fit`in kaydettiği sayı budur. Model eğitilirken hesaplanır: ikinci satırın kaybı, ilk satırla
# yapılan güncellemeden sonra ölçülür.

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
# -> history['loss'][0] = 1.608369
# -> history['loss'][-1] = 1.492463

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Aynı eğitim, aynı ilk ağırlıklardan, yalın PyTorch ile. `criterion`, bir yığının token'ları
# üzerinden ortalamayı döndürür. Döngü, toplamı geri elde etmek için onu token sayısıyla çarpar.
#
# Birçok döngü bunu yapmaz ve yığınların ortalamalarının ortalamasını alır: `sum(means) /
# len(means)`. O zaman ikinci yığının 2 token'ı, ilkinin 7 token'ı kadar ağır basar ve başka bir
# sayı çıkar. Son satırlar, son dönem için ikisini de gösterir: iki ortalama, bunların token
# sayısıyla ağırlıklı ortalaması (`fit`in kaydettiği sayı) ve düz ortalaması.

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
        count = (targets != 0).sum().item()
        total_loss += loss.item() * count
        tokens += count
        means.append(loss.item())
print(f"{means[0] = :.6f}")
print(f"{means[1] = :.6f}")
print(f"{total_loss / tokens = :.6f}")
print(f"{sum(means) / len(means) = :.6f}")
# -> means[0] = 1.646694
# -> means[1] = 0.952656
# -> total_loss / tokens = 1.492463
# -> sum(means) / len(means) = 1.299675
