# %% [markdown]
# # 1. `compile` ne demek?
#
# Bir dil modeli token'ları okur ve sıradaki token'ı tahmin eder. Onu eğitmek için üç şeye karar
# verirsiniz; bu kararlar `compile` içinde yazılır:
#
# - **kayıp (loss)**: tahminlerin ne kadar yanlış olduğunu söyleyen tek bir sayı. Eğitim onu
#   küçültür.
# - **eniyileyici (optimizer)**: kaybı küçültmek için ağırlıkların nasıl değiştirileceğini
#   belirleyen kural.
# - **metrikler**: insanların izlemesi için sayılar. Eğitimi değiştirmezler.
#
# Bütün rehberlerde kullanılan terimler:
#
# | terim | anlamı |
# | --- | --- |
# | token (belirteç) | sözcük, sözcük parçası ya da karakter; model onun numarasını (id) görür |
# | sözcük dağarcığı (vocabulary) | modelin bildiği bütün token'lar; sayıları V |
# | etiket (label) | doğru token; burada metnin sıradaki token'ı |
# | gömme (embedding) | her token için bir vektör içeren tablo |
# | gövde (backbone) | modelin ilk bölümü: id'leri alır, her konum için bir vektör verir |
# | baş (head) | modelin son bölümü: her vektörü logit'lere çevirir |
# | logit | her konum için V tane puan; softmax bunları olasılığa çevirir |
# | dolgu (padding) | satırların uzunlukları eşit olsun diye kısa satırların sonuna eklenir |
# | maskeleme (masking) | bazı token'ları, en başta dolguyu, kaybın dışında bırakmak |
# | kayıp (loss) | modelin ne kadar yanıldığı; burada -ln p(etiket) değerlerinin ortalaması |
# | şaşkınlık (perplexity) | exp(ortalama kayıp): modelin arasında kaldığı eşit olası token sayısı |
# | gradyan (gradient) | her ağırlık için: o ağırlık değişince kayıp nasıl değişir |
# | öğrenme oranı (learning rate) | bir güncellemede bir ağırlığın ne kadar yol aldığı |
# | ağırlık sönümü (weight decay) | her güncelleme ağırlıkları biraz sıfıra yaklaştırır |
# | etiket yumuşatma (label smoothing) | etiket için 1'den biraz küçük bir olasılığı hedeflemek |
# | yığın (batch), dönem (epoch) | tek güncellemenin satırları; bütün verinin üzerinden bir geçiş |
# | öğretmen zorlaması (teacher forcing) | çözücü kendi tahminlerini değil, doğru token'ları okur |
#
# Her kod parçasının altında, PyTorch ile yazdırdıkları yer alır; dosyada bu satırlar `# ->` ile
# başlar. Başka bir arka uç (backend) başka rastgele ağırlıklar üretir; bazı sayıları bu yüzden
# farklıdır.

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
# Burada her token bir sözcüktür. 0 numaralı id dolguya ayrılmıştır. Her konumun etiketi, kendinden
# sonraki token'dır. Yani girdiler ile etiketler aynı id'lerdir; yalnızca bir konum kaydırılmıştır.
# V token varsa id'ler 0'dan V - 1'e kadardır. Modelin dağarcık büyüklüğü, id'leri üreten
# tokenizer'ın dağarcık büyüklüğüyle aynı olmalıdır.

# %%
text = "the cat sat on the mat . the dog sat on the log ."
words = ["<pad>", *sorted(set(text.split()))]
ids = np.array([[words.index(word) for word in text.split()]])
x, y = ids[:, :-1], ids[:, 1:]
vocab_size = len(words)
print(f"{vocab_size = }")
print("reads   ", [words[i] for i in x[0, :5]])
print("predicts", [words[i] for i in y[0, :5]])
# -> vocab_size = 9
# -> reads    ['the', 'cat', 'sat', 'on', 'the']
# -> predicts ['cat', 'sat', 'on', 'the', 'mat']

# %% [markdown]
# ## Bir model
#
# `LanguageModel` iki bölümden oluşur. Gövde (backbone) id'leri vektörlere çevirir. Baş (head)
# vektörleri `[yığın, uzunluk, dağarcık]` biçimindeki logit'lere çevirir.
#
# Buradaki model olabildiğince küçük. Gövdesi yalnızca bir gömme tablosu: bir konumdaki vektör
# yalnızca o konumdaki token'a bağlıdır. Bu yüzden model, sıradaki token'ı yalnızca o anki token'a
# bakarak tahmin eder. Başının ağırlıkları sıfırla başlar; yani başta bütün logit'ler 0'dır.

# %%
head = keras.layers.Dense(vocab_size, kernel_initializer="zeros")
model = models.LanguageModel(keras.layers.Embedding(vocab_size, 16), head)
print("logits", tuple(model(x).shape))
# -> logits (1, 13, 9)

# %% [markdown]
# ## Compile
#
# - `AdamW`, transformer'lar için alışılmış eniyileyicidir. Ayarlarını 4. rehber anlatır.
# - Kayıp, token başına çapraz entropidir; `ignore_index=0` dolguyu dışarıda bırakır: 2. rehber.
# - Metrikler içinde asıl izlenecek olan şaşkınlıktır: 3. rehber.
#
# Eğitilmemiş bir model her token'a yaklaşık aynı olasılığı, 1/V'yi verir. Öyleyse ilk kayıp
# -ln(1/V) = ln V'ye, şaşkınlık da V'ye yakın olmalıdır. Sizinki bundan çok uzaksa eğitime devam
# etmeden önce hatayı arayın.

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
# -> before['loss'] = 2.197224
# -> before['perplexity'] = 8.999997

# %% [markdown]
# `explain`, `compile` sırasında verilen kararları tek ekranda yazdırır ve alışılmadık ayarları ▲
# ile işaretler. Burada öğrenme oranını işaretliyor: 0,03, çok küçük modeller dışında her model için
# fazla yüksektir.

# %%
model.explain()
# -> LanguageModel 'language_model', 297 parameters
# -> ▲ 1 line deserves a look
# ->
# -> Loss  MaskedSparseCategoricalCrossentropy
# ->   each token            -log p(label), p = softmax of the logits
# ->                         how surprised the model is by the label
# ->   left out              labels of 0, sample_weight 0, masked positions
# ->   divided by            the tokens that count, in a batch and over the epoch
# ->   first loss            2.1972  ln 9: all tokens are equally likely
# ->   first perplexity      9  as many tokens to choose from
# ->   label_smoothing       0        [0 – 0.1]ᵃ         share spread over all tokens
# ->   z_loss                0        [0 – 1e-4]ᵇ        keeps logits from drifting
# ->
# -> Optimizer  AdamW
# ->   weight_decay          0.01     [0.01 – 0.1]ᶜᵈ     pulls the weights towards 0
# ->   beta_1                0.9      [0.8 – 0.9]ᵉᶠ      mean of ~10 gradients
# ->   beta_2                0.999    [0.95 – 0.999]ᵈᶠ   mean of ~1,000 squared ones
# ->   epsilon               1e-8     [1e-10 – 1e-5]ᵉᵍ   added to the denominator
# ->   off                   use_ema, loss_scale_factor, decay_vectors,
# ->                         exclude_from_weight_decay
# ->   decayed               288 numbers: embeddings, kernel
# ->   not decayed           9 numbers: bias
# ->   memory                8 bytes a parameter: 2.38 kB in float32
# ->
# -> Learning rate  no schedule
# ->   today                 0.03     [1e-5 – 4e-3]ʰⁱᵉ   after 0 updates
# ->                         ▲ larger than in published runs of this size: the loss
# ->                         may jump or become NaN
# ->   warm-up               none  the first updates are as large as all others
# ->
# -> One update
# ->   clipping              none  global_clipnorm=1.0 is usual
# ->   accumulation          none  every batch of fit makes an update
# ->   micro_batch_size      none  memory holds a whole batch
# ->   effective batch       known after the first fit, or by explain(batch=(x, y))
# ->
# -> Metrics
# ->   loss                  sum of the losses / tokens that count, over the epoch
# ->   perplexity            exp(sum of -log p(label) / tokens that count)
# ->   accuracy              share of the tokens whose label has the largest logit
# ->
# -> How it runs
# ->   software              ...
# ->   device                ...
# ->   precision             float32
# ->   layers                as one graph, made at the second batch of a shape
# ->                         not compiled so far: torch.compile would take longer
# ->                         than it could save
# ->   not finite            update skipped, 0 so far
# ->                         a loss or gradient that is infinite or NaN changes
# ->                         nothing
# ->   logits                never held: one pass gives loss, metrics, gradients
# ->                         with sample_weight only if metrics are weighted_metrics
# ->
# -> [ ] has the usual values: ᵃ Transformer 2017; ᵇ PaLM 2022; ᶜ BERT 2019; ᵈ GPT-3
# -> 2020; ᵉ nanochat 2025; ᶠ Adam 2015; ᵍ Llama 2 2023; ʰ RoBERTa 2019; ⁱ char-rnn
# -> 2015

# %% [markdown]
# ## Fit
#
# `fit` her yığın için aynı adımı yineler: tahmin et, kaybı hesapla, gradyanı hesapla, ağırlıkları
# güncelle.
#
# Burada kayıp 0'a inemez. "the" sözcüğünden sonra, birer kez olmak üzere dört ayrı sözcük gelir ve
# model başka token görmez. Yapabileceğinin en iyisi, bu dört sözcüğün her birine 1/4 olasılık
# vermektir. Bunun bedeli, 13 konumun 4'ünde ln 4'tür.

# %%
start = [np.array(weight) for weight in model.get_weights()]
history = model.fit(x, y, epochs=60, verbose=0).history
print(f"{history['loss'][0] = :.6f}")
print(f"{history['loss'][-1] = :.6f}")
print(f"{history['perplexity'][-1] = :.6f}")
print(f"{4 * np.log(4) / 13 = :.6f}")
# -> history['loss'][0] = 2.197224
# -> history['loss'][-1] = 0.426661
# -> history['perplexity'][-1] = 1.532133
# -> 4 * np.log(4) / 13 = 0.426552

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Aynı eğitim, aynı ilk ağırlıklardan, yalın PyTorch ile. `CrossEntropyLoss` logit'leri `[yığın *
# uzunluk, V]`, etiketleri `[yığın * uzunluk]` biçiminde ister. Yanlılık (bias) terimlerine ağırlık
# sönümü uygulanmaz; nedenini 4. rehber söyler.

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
# -> loss.item() = 0.426661
