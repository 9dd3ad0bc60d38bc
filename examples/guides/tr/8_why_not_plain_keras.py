# %% [markdown]
# # 8. Neden yalın Keras değil?
#
# Keras, satır başına tek etiket (örneğin bir resmin sınıfı) için tasarlanmıştır. Dil modelinde her
# satırın çok sayıda etiketi vardır ve bazıları (dolgu) sayılmaz. Böyle bir modeli Keras'la gelen
# kayıplar, metrikler ve eniyileyicilerle eğitirseniz hata çıkmaz, ama bazı sayılar yanlıştır. İşte
# o sayılar, her biri bizimkinin yanında. `keras_` ile başlayan adlar Keras'ın sayılarıdır, `ours_`
# ile başlayanlar bizimkiler.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch
from keras import ops

from keras_llm import losses, metrics, models, optimizers

stock_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
our_loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index=-1)


def pair(rows):
    """Two models, Keras's and ours, whose logits after token i are `rows[i]`."""
    tables = [keras.layers.Embedding(len(rows), len(rows[0])) for _ in range(2)]
    stock = keras.Sequential([tables[0]])
    ours = models.LanguageModel(tables[1], keras.layers.Identity())
    for model in (stock, ours):
        model(np.zeros((1, 1), "int32"))
        model.set_weights([np.array(rows, "float32")])
    return stock, ours


# %% [markdown]
# ## Bir dönemin kaybı
#
# İlk satırda kaybı 0 olan 31 token vardır. İkincide kaybı ln 5 olan tek bir token ve dolgu (-1)
# vardır. Her satır bir yığındır. Token'lar üzerinden ortalama (ln 5) / 32'dir. Keras iki yığının
# ortalamalarının ortalamasını alır; o tek token, 31 token kadar ağır basar. `val_loss` da aynı
# biçimde hesaplanır ve `EarlyStopping` onu izler.

# %%
stock, ours = pair([[100.0, 0, 0, 0, 0], [0.0] * 5])
x = np.array([[0] * 31, [1] + [0] * 30])
y = np.array([[0] * 31, [0] + [-1] * 30])
stock.compile(loss=stock_loss)
ours.compile(loss=our_loss)
keras_loss, ours_loss = (model.evaluate(x, y, batch_size=1, verbose=0) for model in (stock, ours))
print(f"{keras_loss = :.3f}")
print(f"{ours_loss = :.4f}")
# -> keras_loss = 0.805
# -> ours_loss = 0.0503

# %% [markdown]
# ## Şaşkınlık
#
# 7 token'ın her birinin kaybı 8 nat, 19 token'ınki 0. Keras'ın kaybının üsteli şaşkınlık değildir,
# çünkü o kayıp yığın ortalamalarının ortalamasıdır.

# %%
stock, ours = pair([[0.0, 100.0], [8.0, 0.0]])
x = np.array([[1] * 7 + [0] * 12, [0] * 19])
y = np.array([[1] * 7 + [-1] * 12, [1] * 19])
stock.compile(loss=stock_loss)
ours.compile(loss=our_loss, metrics=[metrics.Perplexity(ignore_index=-1)])
keras_perplexity = np.exp(stock.evaluate(x, y, batch_size=1, verbose=0))
ours_perplexity = ours.evaluate(x, y, batch_size=1, verbose=0, return_dict=True)["perplexity"]
print(f"{keras_perplexity = :.1f}")
print(f"{ours_perplexity = :.2f}")
# -> keras_perplexity = 54.6
# -> ours_perplexity = 8.62

# %% [markdown]
# ## Doğruluk ve dolgu
#
# Keras'ın metriklerinde `ignore_class` yoktur; dolgu `sample_weight` ile maskelenmelidir. İlk
# yığının uzunluğu 128'dir ve 100 token'ının 100'ü doğru tahmin edilmiştir. İkincinin uzunluğu
# 16'dır ve 10 token'ının hiçbiri doğru tahmin edilmemiştir. Demek ki 110 token'ın 100'ü doğrudur.
# Keras önce her satırın, dolgu da içinde olmak üzere, bütün uzunluğu üzerinden ortalamasını alır.
#
# Kayıpta da aynı kusur vardır: 0 ağırlıkları dolguyu maskeler, ama Keras bütün konumların sayısına
# böler. İkinci örnekte 8 konumun 3'ü sayılır; ln 5 yerine ln 5'in 3/8'i çıkar.

# %%
stock_accuracy = keras.metrics.SparseCategoricalAccuracy()
our_accuracy = metrics.MaskedTokenAccuracy()
for length, count, label in ((128, 100, 0), (16, 10, 1)):
    says_zero = np.array([[[1.0, 0.0]] * length], "float32")
    mask = (np.arange(length) < count)[None].astype("float32")
    for metric in (stock_accuracy, our_accuracy):
        metric.update_state(np.full((1, length), label), says_zero, sample_weight=mask)
keras_accuracy, ours_accuracy = float(stock_accuracy.result()), float(our_accuracy.result())
print(f"{keras_accuracy = :.3f}")
print(f"{ours_accuracy = :.3f}")

zeros, mask = np.zeros((2, 4), "int32"), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
keras_weighted, ours_weighted = (
    float(loss(zeros, np.zeros((2, 4, 5), "float32"), mask)) for loss in (stock_loss, our_loss)
)
print(f"{keras_weighted = :.4f}")
print(f"{ours_weighted = :.4f}")
# -> keras_accuracy = 0.556
# -> ours_accuracy = 0.909
# -> keras_weighted = 0.6035
# -> ours_weighted = 1.6094

# %% [markdown]
# ## bfloat16'da id'ler
#
# Bir bfloat16 sayısının 8 anlamlı biti vardır; 256'dan büyük tam sayılar yuvarlanır: 31999, 32000
# olur. Keras etiketleri ve tahmin edilen id'leri logit'lerin türüne (dtype) çevirir. Aşağıda dört
# tahmin bir ya da iki id farkla yanlıştır ve Keras dördünü de doğru sayar. Bizimki tam sayıları
# karşılaştırır.

# %%
id_in_bfloat16 = int(ops.cast(ops.convert_to_tensor(31999.0), "bfloat16"))
labels, guesses = np.array([31999, 30001, 29999, 28001]), [32000, 30000, 30000, 28000]
logits = np.zeros((4, 32_001), "float32")
logits[np.arange(4), guesses] = 5.0
stock_accuracy = keras.metrics.SparseCategoricalAccuracy()
our_accuracy = metrics.MaskedTokenAccuracy()
for metric in (stock_accuracy, our_accuracy):
    metric.update_state(labels, ops.convert_to_tensor(logits, "bfloat16"))
keras_bfloat16, ours_bfloat16 = float(stock_accuracy.result()), float(our_accuracy.result())
print(f"{id_in_bfloat16 = }")
print(f"{keras_bfloat16 = :.1f}")
print(f"{ours_bfloat16 = :.1f}")
# -> id_in_bfloat16 = 32000
# -> keras_bfloat16 = 1.0
# -> ours_bfloat16 = 0.0

# %% [markdown]
# ## Biriktirilmiş gradyanlar
#
# Birer satırlık iki yığın tek bir güncelleme yapar. İlk satırda 20 tane 0 ve 11 tane 1 etiketi,
# ikincide bir tane 1 etiketi vardır. Model iki token'a da 1/2 olasılığını verir. Etiketlerin
# 20/32'si 0'dır; öyleyse 0'ın logit'i, öğrenme oranı 1 iken, 20/32 - 1/2 = 0,125 yükselmelidir.
# Keras iki yığının ortalamalarının ortalamasını alır. Orada ikinci satırın tek etiketi, ilk satırın
# 31 etiketi kadar ağır basar ve logit düşer: güncelleme yanlış yöndedir.

# %%
stock, ours = pair([[0.0, 0.0]])
x = np.zeros((2, 31), "int32")
y = np.array([[0] * 20 + [1] * 11, [1] + [-1] * 30])
for model, loss in ((stock, stock_loss), (ours, our_loss)):
    model.compile(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), loss)
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
keras_step, ours_step = (np.array(model.get_weights()[0])[0, 0] for model in (stock, ours))
print(f"{keras_step = :.4f}")
print(f"{ours_step = :.4f}")
# -> keras_step = -0.1774
# -> ours_step = 0.1250

# %% [markdown]
# ## Eniyileyiciler
#
# - AdamW. Keras ağırlık sönümünü bias'a da uygular: gradyanı 0, değeri 1 olan bir bias 0,99 olur.
#   bfloat16'da beta_2'si, yani 0,999, 1'e yuvarlanır ve değeri 1 olan bir ağırlık değişmez; oysa
#   0,1'lik bir güncelleme onu 0,9 yapmalıdır (bfloat16'da 0,8984).
# - Adafactor bellekten kazanmak için yapılmıştır. Keras'ınki gene de her ağırlık için bir değer
#   tutar; ağırlık başına 4 bayttan çok yer kaplar. Bir matrisin bir satırının ve bir sütununun
#   gradyanı yoksa da (hiç geçmeyen bir token, hiç etkinleşmeyen bir birim) bütün ağırlıkları NaN
#   yapar.


# %%
def updated(optimizer, weight, gradient, name="weight", dtype="float32"):
    """A weight after one update."""
    variable = keras.Variable(weight, name=name, dtype=dtype)
    optimizer.apply([ops.cast(gradient, dtype)], [variable])
    state = sum(4 * np.prod(v.shape) for v in optimizer.variables if len(v.shape))
    return np.array(ops.convert_to_numpy(ops.cast(variable, "float32"))), state / np.size(weight)


one, none, square = np.ones((1, 1)), np.zeros(1), np.ones((512, 512))
with_dead = np.ones((512, 512))
with_dead[0] = with_dead[:, 0] = 0
for name, library in (("keras", keras.optimizers), ("ours", optimizers)):
    bias = updated(library.AdamW(0.1, weight_decay=0.1), none + 1, none, "bias")[0][0]
    moved = updated(library.AdamW(0.1, weight_decay=0.0), one, one, dtype="bfloat16")[0][0, 0]
    adafactor = library.Adafactor() if name == "ours" else library.Adafactor(1e-3)
    after, bytes_of_state = updated(adafactor, square, with_dead)
    print(f"{name}_bias = {bias:.4f}")
    print(f"{name}_moved = {moved:.4f}")
    print(f"{name}_bytes = {bytes_of_state:.4f}")
    print(f"{name}_nan = {np.isnan(after).sum()}")
# -> keras_bias = 0.9900
# -> keras_moved = 1.0000
# -> keras_bytes = 4.0156
# -> keras_nan = 262144
# -> ours_bias = 1.0000
# -> ours_moved = 0.8984
# -> ours_bytes = 0.0156
# -> ours_nan = 0

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Toplamları biriktiren ve bir kez bölen bir döngü, ilk üç bölümde bizim sayılarımızı yazdırır.

# %%
easy, even, hard = torch.tensor([[100.0, 0, 0, 0, 0]]), torch.zeros(1, 5), torch.tensor([[8.0, 0]])


def loop(*batches):
    """Mean loss and share of right guesses over batches of equal tokens: logits, label, count."""
    total, right, tokens = 0.0, 0, 0
    for logits, label, count in batches:
        labels = torch.tensor([label] * count)
        logits = logits.expand(count, -1)
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(-1) == labels).sum().item()
        tokens += count
    return total / tokens, right / tokens


loop_loss = loop((easy, 0, 31), (even, 0, 1))[0]
loop_perplexity = np.exp(loop((hard, 1, 7), (easy, 0, 19))[0])
loop_accuracy = loop((easy, 0, 100), (easy, 1, 10))[1]
print(f"{loop_loss = :.4f}")
print(f"{loop_perplexity = :.2f}")
print(f"{loop_accuracy = :.3f}")
# -> loop_loss = 0.0503
# -> loop_perplexity = 8.62
# -> loop_accuracy = 0.909
