# %% [markdown]
# # 3. Şaşkınlık (perplexity) ve doğruluğun neden yanılttığı
#
# 2,3'lük bir kaybı gözde canlandırmak zordur. Üstelini anlamak daha kolaydır:
#
#     şaşkınlık = exp(-ln p(etiket) değerlerinin toplamı / token sayısı)
#
# Şaşkınlığın 10 olması şu demektir: model ortalama olarak, eşit olası 10 token arasından seçim
# yapıyormuş kadar kararsızdır. Etikete her zaman 1 olasılığını veren bir modelin şaşkınlığı 1'dir.
# Hiçbir şey öğrenmemiş bir modelinki V, yani dağarcığın büyüklüğüdür.
#
# Eğitilmemiş bir model V'nin çok üstünde başlıyorsa bir yanlışlık vardır. Yanlış token'lara yüksek
# olasılık veriyordur; yani her token'a 1/V veren bir modelden daha kötüdür. Alışılmış nedenler:
# fazla büyük ilk ağırlıklar ve başka bir tokenizer ile eğitilmiş ağırlıklar.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models


def measured(metric, probabilities, labels):
    """The metric's value for these probabilities, `[tokens, V]`."""
    metric.update_state(np.array([labels]), np.log([probabilities]).astype("float32"))
    return float(metric.result())


# %% [markdown]
# 8 token'ın hepsi eşit olasıdır; demek ki şaşkınlık 8'dir.

# %%
no_idea = measured(metrics.Perplexity(), np.full((3, 8), 1 / 8), [1, 5, 7])
print(f"{no_idea = :.6f}")
# -> no_idea = 8.000000

# %% [markdown]
# ## Doğruluk (accuracy) neden yanıltır?
#
# Doğruluk tek bir şey sorar: en büyük olasılık etikette miydi? İki modeli dört token üzerinde
# karşılaştıralım. İkisi de üç kez doğru tahmin eder. Temkinli model (careful) etiketlere 0,6, 0,6,
# 0,6 ve 0,2 verir. Atılgan model (bold) 0,9, 0,9, 0,9 ve 0,001 verir: yanıldığı yerde, yanlış
# token'dan neredeyse emindir. İkisinin doğruluğu aynıdır. Atılgan modelin şaşkınlığı ise iki
# katından fazladır.


# %%
def two_tokens(p_of_label):
    """Rows of two probabilities: the label is token 0."""
    return np.array([[p, 1 - p] for p in p_of_label])


careful, bold = two_tokens([0.6, 0.6, 0.6, 0.2]), two_tokens([0.9, 0.9, 0.9, 0.001])
careful_accuracy = measured(metrics.MaskedTokenAccuracy(), careful, [0] * 4)
bold_accuracy = measured(metrics.MaskedTokenAccuracy(), bold, [0] * 4)
careful_perplexity = measured(metrics.Perplexity(), careful, [0] * 4)
bold_perplexity = measured(metrics.Perplexity(), bold, [0] * 4)
print(f"{careful_accuracy = :.2f}")
print(f"{bold_accuracy = :.2f}")
print(f"{careful_perplexity = :.6f}")
print(f"{bold_perplexity = :.6f}")
# -> careful_accuracy = 0.75
# -> bold_accuracy = 0.75
# -> careful_perplexity = 2.193457
# -> bold_perplexity = 6.085806

# %% [markdown]
# Doğruluk iki biçimde daha yanıltır. İngilizcede her zaman "the" tahmin eden bir model, hiçbir şey
# öğrenmediği hâlde yaklaşık yirmi sözcükte bir doğru çıkar. Dolgu sayılırsa da kolay puan getirir:
# aşağıda satırın yarısı dolgudur; model gerçek token'ların hepsinde yanılır, ama doğruluğu 0,5'tir.
# `ignore_index` dolguyu dışarıda bırakır.

# %%
padded_labels = np.array([[1, 1, 0, 0]])
says_zero = np.array([[[1.0, 0.0]] * 4])
padding_counts = metrics.MaskedTokenAccuracy()
token_accuracy = metrics.MaskedTokenAccuracy(ignore_index=0)
for metric in (padding_counts, token_accuracy):
    metric.update_state(padded_labels, says_zero)
print(f"{float(padding_counts.result()) = :.2f}")
print(f"{float(token_accuracy.result()) = :.2f}")
# -> float(padding_counts.result()) = 0.50
# -> float(token_accuracy.result()) = 0.00

# %% [markdown]
# ## Bir kez böl, en sonda
#
# İki yığınlık bir dönem. İlkinde 7 token'ın her birinin kaybı 8 nat. (Nat, -ln p'nin birimidir.)
# İkincide 19 token'ın kaybı 0. Ortalama almanın üç yolu vardır ve yalnızca ilki doğrudur:
#
# - bütün token'ların kayıplarını toplamak, 26'ya bölmek, sonra üstelini almak;
# - iki yığının ortalamalarının, yani 8 ile 0'ın ortalamasını almak, sonra üstelini almak: birinde
#   7, ötekinde 19 token olduğu hâlde iki yığın eşit ağırlık alır;
# - iki yığının şaşkınlıklarının ortalamasını almak: exp(8) çok büyük olduğu için bu daha da
#   kötüdür.

# %%
right = np.exp((7 * 8 + 19 * 0) / (7 + 19))
exp_of_mean_of_means = np.exp((8 + 0) / 2)
mean_of_perplexities = (np.exp(8) + np.exp(0)) / 2
print(f"{right = :.2f}")
print(f"{exp_of_mean_of_means = :.2f}")
print(f"{mean_of_perplexities = :.2f}")
# -> right = 8.62
# -> exp_of_mean_of_means = 54.60
# -> mean_of_perplexities = 1490.98

# %% [markdown]
# ## `fit` ile `evaluate` neyi kaydeder?
#
# Şimdi aynı 26 token, bir modelde. Kayıplarını önceden bilmek için logit'leri bir tabloya
# yazıyoruz: gövde, i. satırı i token'ından sonraki logit'leri tutan bir gömme tablosudur; baş
# hiçbir şeyi değiştirmez.
#
# - 0 token'ından sonra logit'ler [8, 0]'dır. 1 etiketinin kaybı ln(1 + exp(8)), yani 8,0003'tür.
# - 1 token'ından sonra [0, 100]'dür. 1 etiketinin kaybı 0'dır.
#
# Verinin ilk satırında birinci türden 7 token ve dolgu (etiketi -1) vardır. İkinci satırında ikinci
# türden 19 token vardır. Yığın büyüklüğü 1 olunca bunlar, yukarıdaki gibi iki yığındır.

# %%
table = keras.layers.Embedding(2, 2)
model = models.LanguageModel(table, keras.layers.Identity())
x = np.array([[0] * 7 + [1] * 12, [1] * 19])
y = np.array([[1] * 7 + [-1] * 12, [1] * 19])
model(x)
table.set_weights([np.array([[8.0, 0.0], [0.0, 100.0]])])
model.compile(
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1),
    metrics=[metrics.Perplexity(ignore_index=-1)],
)
logs = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
print(f"{logs['loss'] = :.6f}")
print(f"{logs['perplexity'] = :.6f}")
print(f"{np.exp(logs['loss']) = :.6f}")
# -> logs['loss'] = 2.153937
# -> logs['perplexity'] = 8.618720
# -> np.exp(logs['loss']) = 8.618720

# %% [markdown]
# Burada şaşkınlık, kaybın üstelidir. Bu yalnızca yalın çapraz entropi için böyledir. Etiket
# yumuşatma (5. rehber) kaybı değiştirir: değeri artık başka bir modelinkiyle karşılaştırılamaz.
# `Perplexity` her zaman -ln p(etiket) değerini kullanır; bu yüzden aynı kalır.

# %%
model.compile(
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1, label_smoothing=0.1),
    metrics=[metrics.Perplexity(ignore_index=-1)],
)
smoothed = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
print(f"{smoothed['loss'] = :.6f}")
print(f"{smoothed['perplexity'] = :.6f}")
# -> smoothed['loss'] = 5.700090
# -> smoothed['perplexity'] = 8.618720

# %% [markdown]
# ## `evaluate`in yerini aldığı döngü
#
# Aynısı PyTorch ile. `reduction="sum"`, bir yığının token'ları üzerinden toplamı döndürür. Döngü bu
# toplamları ve token sayılarını biriktirir. Son yığından sonra bir kez böler ve üstelini alır.

# %%
weights = torch.tensor([[8.0, 0.0], [0.0, 100.0]])
total, tokens = 0.0, 0
with torch.no_grad():
    for inputs, targets in zip(torch.tensor(x), torch.tensor(y), strict=True):
        nll = torch.nn.functional.cross_entropy(
            weights[inputs], targets, ignore_index=-1, reduction="sum"
        )
        total += nll.item()
        tokens += (targets != -1).sum().item()
perplexity = np.exp(total / tokens)
print(f"{tokens = }")
print(f"{perplexity = :.6f}")
# -> tokens = 26
# -> perplexity = 8.618720
