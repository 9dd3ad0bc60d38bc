# %% [markdown]
# # 3. Şaşkınlık (perplexity) ve doğruluğun neden yanılttığı
#
# 2,3'lük bir kayıp insana pek bir şey söylemez. Üstelini alınca söyler:
#
#     şaşkınlık = exp(-ln p(etiket) değerlerinin toplamı / token sayısı)
#
# Bu, modelin arasında kararsız kaldığı token sayısıdır. Emin ve haklı bir modelin şaşkınlığı 1,
# hiçbir şey bilmeyen bir modelinki V, yani dağarcığın büyüklüğüdür. V'nin çok üstünde başlayan yeni
# bir model rastgele tahminden kötüdür: ilk ağırlıkları ya çok büyüktür ya da ona ait değildir.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models


def measured(metric, probabilities, labels):
    """What a metric says of these probabilities, `[tokens, V]`."""
    metric.update_state(np.array([labels]), np.log([probabilities]).astype("float32"))
    return float(metric.result())


# %% [markdown]
# 8 token'ın hepsini eşit olası bulan bir model 8 token arasında kararsızdır.

# %%
no_idea = measured(metrics.Perplexity(), np.full((3, 8), 1 / 8), [1, 5, 7])
print(f"{no_idea = :.6f}")

# %% [markdown]
# ## Doğruluk (accuracy) neden yanıltır?
#
# Doğruluk tek bir şey sorar: En büyük olasılık etikette miydi? İki model, dört token; ikisi de üç
# kez haklı. Temkinli model (careful) etiketlere 0,6, 0,6, 0,6 ve 0,2 veriyor. Atılgan model (bold)
# 0,9, 0,9, 0,9 ve 0,001 veriyor: yanıldığı yerde de kesin konuşuyor. Doğruluk aradaki farkı görmez,
# şaşkınlık görür; bu olasılıklarla yazılmış bir metni okuyan da görür.


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

# %% [markdown]
# Doğruluk başka biçimlerde de yanıltır. İngilizcede hep "the" diyen bir model yaklaşık yirmi
# sözcükte bir haklı çıkar, oysa hiçbir şey öğrenmemiştir. Dolgu sayılırsa, yarısı dolgu olan bir
# yığın modele puanın yarısını bedavadan verir. Bu yüzden token düzeyinde doğruluk kullanılır:
# yalnızca sayılan token'lar üzerinden.

# %%
padded_labels = np.array([[1, 1, 0, 0]])
says_zero = np.array([[[1.0, 0.0]] * 4])
padding_counts = metrics.MaskedTokenAccuracy()
token_accuracy = metrics.MaskedTokenAccuracy(ignore_index=0)
for metric in (padding_counts, token_accuracy):
    metric.update_state(padded_labels, says_zero)
print(f"{float(padding_counts.result()) = :.2f}")
print(f"{float(token_accuracy.result()) = :.2f}")

# %% [markdown]
# ## Bir kez böl, en sonda
#
# İki yığın: her biri 8 nat tutan 7 token ve hiçbir şey tutmayan 19 token. Ortalamanın üç yolu var,
# yalnızca biri doğru. (Nat, -ln p'nin birimidir.)

# %%
right = np.exp((7 * 8 + 19 * 0) / (7 + 19))
exp_of_mean_of_means = np.exp((8 + 0) / 2)
mean_of_perplexities = (np.exp(8) + np.exp(0)) / 2
print(f"{right = :.2f}")
print(f"{exp_of_mean_of_means = :.2f}")
print(f"{mean_of_perplexities = :.2f}")

# %% [markdown]
# ## `fit` ile `evaluate` ne yazar?
#
# Böyle bir modeli logit tablosuyla kurabiliriz: 0 token'ından sonra 1 etiketi (neredeyse) 8 nat
# tutar, 1 token'ından sonra hiç tutmaz. `Perplexity` yığınlar boyunca toplamları biriktirir.
# Yumuşatılmış kaybı değil, her zaman ham -ln p değerini alır: etiket yumuşatmayla derlenince
# (compile) kayıp değişir, şaşkınlık değişmez.

# %%
table = keras.layers.Embedding(2, 2)
model = models.LanguageModel(table, keras.layers.Identity())
x = np.array([[0] * 7 + [1] * 12, [1] * 19])
y = np.array([[1] * 7 + [-1] * 12, [1] * 19])
model(x)
table.set_weights([np.array([[8.0, 0.0], [0.0, 100.0]])])
logs = {}
for smoothing in (0.0, 0.1):
    model.compile(
        loss=losses.MaskedSparseCategoricalCrossentropy(-1, label_smoothing=smoothing),
        metrics=[metrics.Perplexity(ignore_index=-1)],
    )
    logs[smoothing] = model.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)
print(f"{logs[0.0]['loss'] = :.6f}")
print(f"{logs[0.0]['perplexity'] = :.6f}")
print(f"{logs[0.1]['loss'] = :.6f}")
print(f"{logs[0.1]['perplexity'] = :.6f}")

# %% [markdown]
# ## `evaluate`in yerini aldığı döngü
#
# Döngünün içinde toplamlar; döngüden sonra bir bölme ve bir üstel.

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
print(f"{perplexity = :.6f}")
