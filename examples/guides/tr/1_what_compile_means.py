# %% [markdown]
# # 1. `compile` ne demek?
#
# Bir dil modeli token'ları okur ve sıradaki token'ı tahmin eder. Onu eğitmek için üç şeye karar
# vermek gerekir; `compile` bu kararların yazıldığı yerdir:
#
# - **kayıp (loss)**: Tahmin ne kadar yanlış? Eğitimin küçülttüğü tek bir sayı.
# - **eniyileyici (optimizer)**: Kayıp yönü gösterdikten sonra ağırlıklar nasıl değiştirilecek?
# - **metrikler**: Bu sırada insan neye bakacak? Metrikler eğitimi hiç etkilemez.
#
# Bütün rehberlerde kullanılan sözcükler:
#
# | terim | anlamı |
# | --- | --- |
# | token (belirteç) | sözcük, sözcük parçası ya da karakter; model onun numarasını (id) görür |
# | sözcük dağarcığı (vocabulary) | modelin bildiği bütün token'lar; sayısı V |
# | etiket (label) | doğru olan token; burada sıradaki token |
# | logit | her konum için V tane puan; softmax bunları olasılığa çevirir |
# | dolgu (padding) | yığın dikdörtgen olsun diye kısa satırların sonuna eklenen boş token'lar |
# | maskeleme (masking) | bazı token'ları, en başta dolguyu, kaybın dışında bırakmak |
# | kayıp (loss) | modelin ne kadar yanıldığı; burada -ln p(etiket) değerlerinin ortalaması |
# | şaşkınlık (perplexity) | exp(ortalama kayıp): model kaç token arasında kararsız kalıyor |
# | gradyan (gradient) | ağırlıklar değişince kaybın nasıl değiştiği |
# | öğrenme oranı (learning rate) | bir güncellemede ağırlığın ne kadar yol aldığı |
# | ağırlık sönümü (weight decay) | her güncellemede ağırlıkları biraz sıfıra doğru çekmek |
# | etiket yumuşatma (label smoothing) | modelden, kendinden tam emin olmamasını istemek |
# | yığın (batch), dönem (epoch) | tek güncellemenin satırları; bütün verinin üzerinden bir geçiş |
# | öğretmen zorlaması (teacher forcing) | modelin kendi tahmini yerine doğru başlangıcı okuması |

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models, optimizers

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Metinden id'lere
#
# Burada her token bir sözcük. 0 numaralı id dolguya ayrıldı. Her konumun etiketi kendinden sonraki
# token'dır; yani girdiler ile etiketler aynı id'lerdir, yalnızca bir konum kaydırılmıştır. V token
# varsa id'ler 0'dan V - 1'e kadardır: modelin dağarcık büyüklüğü, id'leri üreten tokenizer'ınkiyle
# aynı olmalıdır.

# %%
text = "the cat sat on the mat . the dog sat on the log ."
words = ["<pad>", *sorted(set(text.split()))]
ids = np.array([[words.index(word) for word in text.split()]])
x, y = ids[:, :-1], ids[:, 1:]
vocab_size = len(words)
print(f"{vocab_size = }")
print("reads   ", [words[i] for i in x[0, :5]])
print("predicts", [words[i] for i in y[0, :5]])

# %% [markdown]
# ## Bir model
#
# `LanguageModel` iki parçadan oluşur: id'lerden vektör üreten gövde (backbone) ve vektörlerden
# `[yığın, uzunluk, dağarcık]` biçiminde logit üreten baş (head). Buradaki, olabilecek en küçük
# model: gövdesi her token için bir vektör bulup getirir, dolayısıyla yalnızca bir önceki token'ı
# bilir. Başının ağırlıkları sıfırdan başlar.

# %%
head = keras.layers.Dense(vocab_size, kernel_initializer="zeros")
model = models.LanguageModel(keras.layers.Embedding(vocab_size, 16), head)
print("logits", tuple(model(x).shape))

# %% [markdown]
# ## Compile
#
# - Transformer'lar `AdamW` ile eğitilir; sayıları 4. rehberin konusu.
# - Kayıp, token başına çapraz entropidir; `ignore_index=0` dolguyu dışarıda bırakır: 2. rehber.
# - Metrikler içinde asıl izlenecek olan şaşkınlıktır: 3. rehber.
#
# Hiçbir şey bilmeyen bir model her token'a aynı olasılığı, 1/V'yi verir. Öyleyse ilk kayıp
# -ln(1/V) = ln V, şaşkınlık da V olmalıdır. Sizinki bundan çok uzaksa hatayı şimdi arayın.

# %%
model.compile(
    optimizer=optimizers.AdamW(learning_rate=0.03, weight_decay=0.01),
    loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
    metrics=[
        metrics.Perplexity(ignore_index=0),
        metrics.MaskedTokenAccuracy(ignore_index=0, name="accuracy"),
    ],
)
before = model.evaluate(x, y, verbose=0, return_dict=True)
print(f"{before['loss'] = :.6f}")
print(f"{before['perplexity'] = :.6f}")

# %% [markdown]
# `explain`, verilen kararları tek ekranda gösterir ve alışılmışın dışında kalanları işaretler.
# Öğrenme oranı konusunda haklı: bu kadar yükseğine ancak oyuncak bir model dayanır.

# %%
model.explain()

# %% [markdown]
# ## Fit
#
# `fit` her yığın için aynı adımı yineler: tahmin et, kaybı ölç, gradyanı bul, ağırlıkları oynat.
# Burada kayıp 0'a inemez: "the" sözcüğünden sonra dört ayrı sözcük geliyor; tek token gören bir
# model ancak "dörtte bir" diyebilir. Bunun bedeli 13 konumun 4'ünde ln 4'tür, daha azı olamaz.

# %%
start = [np.array(weight) for weight in model.get_weights()]
history = model.fit(x, y, epochs=60, verbose=0).history
print(f"{history['loss'][0] = :.6f}")
print(f"{history['loss'][-1] = :.6f}")
print(f"{history['perplexity'][-1] = :.6f}")
print(f"{4 * np.log(4) / 13 = :.6f}")

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Aynısı, aynı ağırlıklardan başlayarak, yalın PyTorch ile. `CrossEntropyLoss` öyle istediği için
# logit'ler `[yığın * uzunluk, V]`, etiketler `[yığın * uzunluk]` biçimine düzleştirilir. Yanlılık
# (bias) terimlerine ağırlık sönümü uygulanmaz.

# %%
network = torch.nn.Sequential(torch.nn.Embedding(vocab_size, 16), torch.nn.Linear(16, vocab_size))
embedding, kernel, bias = map(torch.tensor, start)
network.load_state_dict({"0.weight": embedding, "1.weight": kernel.T, "1.bias": bias})
decayed = [weight for weight in network.parameters() if weight.ndim > 1]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": 0.01}, {"params": network[1].bias, "weight_decay": 0.0}],
    lr=0.03,
)
criterion = torch.nn.CrossEntropyLoss(ignore_index=0)
inputs, labels = torch.tensor(x), torch.tensor(y)

for _ in range(60):
    optimizer.zero_grad()
    logits = network(inputs)
    loss = criterion(logits.view(-1, vocab_size), labels.view(-1))
    loss.backward()
    optimizer.step()
print(f"{loss.item() = :.6f}")
