# %% [markdown]
# # 6. Beş adımda eğitim döngüsü
#
#     her dönem (epoch) için
#         her yığın (batch) için                                          1  yığın
#             logits = model(girdiler)                                    2  ileri geçiş (forward)
#             kayıp = logit'ler ne kadar yanlış                           3  kayıp (loss)
#             gradyanlar = ağırlıklar değişince kayıp nasıl değişir       4  geri yayılım (backward)
#             ağırlıklar = eniyileyicinin değiştirdiği ağırlıklar         5  güncelleme (update)
#
# Örnek bir kodlayıcı-çözücüdür (encoder-decoder): bir dizi okur, başka bir dizi yazar. Görevi, bir
# rakam dizisini tersten yazmaktır. `compile` ve `fit` her arka uçta (backend) çalışır; elle yazılan
# adımlar ve döngüler PyTorch içindir, başka bir arka uçta atlanır.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import data, losses, models, optimizers, schedules

PAD, START, END = 0, 1, 2
on_torch = keras.backend.backend() == "torch"
if not on_torch:
    print("The steps by hand are written for PyTorch: only compile and fit run here.")

# %% [markdown]
# ## 1. Yığın
#
# Yığın, verinin birkaç satırıdır. Bütün satırlar birden belleğe sığmaz; tek satırın gradyanı ise
# gürültülüdür. Bir yığının bütün satırları aynı uzunluktadır; kısa olanları dolgu (0) tamamlar.
# Sonra yığın, modelin bulunduğu aygıta (CPU ya da GPU) kopyalanır; `fit` bunu sizin yerinize yapar.
#
# Çözücü **öğretmen zorlamasıyla (teacher forcing)** eğitilir: her konumda, kendi tahmin ettiği
# token'ları değil, o konuma kadarki doğru token'ları okur. Böylece baştaki bir hata gerisini bozmaz
# ve bütün konumlar aynı anda eğitilir.
#
# Bunun için çözücü, hedefi bir konum sağa kaydırılmış olarak okur; en başta START durur:
#
#     çözücü okur          START  7  5  3
#     çözücü tahmin eder     7    5  3  END
#
# Tam olarak bir kez kaydırın. Kaydırılmazsa çözücü, tahmin etmesi gereken token'ın kendisini okur
# ve onu kopyalamayı öğrenir. İki kez kaydırılırsa (bir kez siz, bir kez bir kitaplık), sıradakinden
# sonraki token'ı tahmin etmek üzere eğitilir.

# %%
rng = np.random.default_rng(0)
sources = np.zeros((32, 5), "int64")
targets = np.zeros((32, 6), "int64")
for source, target in zip(sources, targets, strict=True):
    digits = rng.integers(3, 13, rng.integers(2, 6))
    source[: len(digits)] = digits
    target[: len(digits) + 1] = [*digits[::-1], END]
decoder_ids, labels = data.teacher_forcing(targets, start_id=START)
print("encoder reads   ", sources[0])
print("decoder reads   ", decoder_ids[0])
print("decoder predicts", labels[0])
# -> encoder reads    [9 8 5 6 3]
# -> decoder reads    [1 3 6 5 8 9]
# -> decoder predicts [3 6 5 8 9 2]

# %% [markdown]
# ## 2'den 5'e, bir kez ve elle
#
# PyTorch arka ucunda bir Keras modeli aynı zamanda bir `torch.nn.Module`'dür; PyTorch'un kendi
# fonksiyonları onunla çalışır.
#
# - **İleri geçiş**: model `[yığın, uzunluk, dağarcık]` biçiminde logit'ler döndürür.
# - **Kayıp**: dolgu olmayan token'lar üzerinden çapraz entropi. Eğitilmemiş modelde ln 13'e
#   yakındır.
# - **Geri yayılım**: zincir kuralı, her ağırlık için kaybın gradyanını verir.
# - **Güncelleme**: önce gradyanlar kırpılır (gradient clipping): normları 1'den büyükse, 1 olacak
#   biçimde küçültülürler. Derin ağlarda gradyan çok büyüyebilir. Sonra eniyileyici ağırlıkları
#   değiştirir ve aynı yığının kaybı küçülür.


# %%
def new_model(cls=models.Seq2SeqTransformer):
    """A small model that always starts from the same weights."""
    keras.utils.set_random_seed(0)
    return cls(13, d_model=16, num_layers=1, num_heads=2, max_length=8, dropout=0.0)


def tensors(rows, device):
    """1. A batch, on the model's device."""
    arrays = (sources[rows], decoder_ids[rows], labels[rows])
    return [torch.tensor(array).to(device) for array in arrays]


criterion = torch.nn.CrossEntropyLoss(ignore_index=PAD)
if on_torch:
    model = new_model()
    device = next(model.parameters()).device
    encoder_ids, read, target = tensors(slice(0, 8), device)
    logits = model({"encoder_ids": encoder_ids, "decoder_ids": read})
    first_loss = criterion(logits.view(-1, 13), target.view(-1))
    first_loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    norm_after = torch.nn.utils.get_total_norm([w.grad for w in model.parameters()])
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    logits = model({"encoder_ids": encoder_ids, "decoder_ids": read})
    loss_after = criterion(logits.view(-1, 13), target.view(-1))
    print("logits", tuple(logits.shape))
    print(f"{first_loss.item() = :.6f}")
    print(f"{norm.item() = :.6f}")
    print(f"{norm_after.item() = :.6f}")
    print(f"{loss_after.item() = :.6f}")
# -> logits (8, 6, 13)
# -> first_loss.item() = 2.580948
# -> norm.item() = 1.071077
# -> norm_after.item() = 0.999999
# -> loss_after.item() = 2.486095

# %% [markdown]
# ## Beşi birden, `compile` ve `fit` ile
#
# `compile`, 3. adımın kaybını ve 5. adımın eniyileyicisini belirler. `fit` iki döngüyü de yürütür:
# dönemler ve yığınlar üzerinden.


# %%
def compiled(model):
    """The model with its loss and optimizer."""
    schedule = schedules.WarmupLinearDecay(0.01, warmup_steps=4, total_steps=20)
    model.compile(
        optimizer=optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0),
        loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=PAD),
    )
    return model


inputs = {"encoder_ids": sources, "decoder_ids": decoder_ids}
arguments = {"batch_size": 8, "epochs": 5, "shuffle": False, "verbose": 0}
of_fit = compiled(new_model()).fit(inputs, labels, **arguments).history["loss"]
print(f"{of_fit[0] = :.5f}")
print(f"{of_fit[-1] = :.5f}")
# -> of_fit[0] = 2.56528
# -> of_fit[-1] = 2.11836


# %% [markdown]
# ## Kendi adımınız
#
# Bir adımda yapılanı değiştirmek, ama `fit`i geri çağrıları (callback), doğrulaması ve kayıtlarıyla
# kullanmayı sürdürmek için `train_step`i yeniden tanımlayın. Buradaki, beş adımı Keras'ın
# metotlarıyla, PyTorch arka ucu için yapar. Kendi satırlarınızı gereken yere ekleyin.


# %%
class MyModel(models.Seq2SeqTransformer):
    def train_step(self, batch):
        x, y = batch
        self.zero_grad()
        logits = self(x, training=True)
        loss = self.compute_loss(x=x, y=y, y_pred=logits)
        loss.backward()
        gradients = [weight.value.grad for weight in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        return self.compute_metrics(x, y, logits)


if on_torch:
    of_my_step = compiled(new_model(MyModel)).fit(inputs, labels, **arguments).history["loss"]
    print(f"{of_my_step[-1] = :.5f}")
# -> of_my_step[-1] = 2.11836

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Yukarıdan aşağıya okuyun: eğitimde olanların hepsi budur. Dönemin sonunda kaybın, dönemin
# token'ları üzerinden ortalaması alınır; modelin öğrenip öğrenmediğini o gösterir. Sayılar
# `fit`inkilerdir.


# %%
def train_by_hand(model):
    """The mean loss of each of 5 epochs."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.01},
            {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: t / 4 if t < 4 else (20 - t) / (20 - 4)
    )
    history = []
    for _ in range(5):
        total_loss, tokens = 0.0, 0
        for first_row in range(0, 32, 8):
            encoder_ids, read, target = tensors(slice(first_row, first_row + 8), weights[0].device)
            optimizer.zero_grad()
            logits = model({"encoder_ids": encoder_ids, "decoder_ids": read}, training=True)
            loss = criterion(logits.view(-1, 13), target.view(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            scheduler.step()
            count = (target != PAD).sum().item()
            total_loss, tokens = total_loss + loss.item() * count, tokens + count
        history.append(total_loss / tokens)
    return history


if on_torch:
    of_loop = train_by_hand(new_model())
    print(f"{of_loop[0] = :.5f}")
    print(f"{of_loop[-1] = :.5f}")
# -> of_loop[0] = 2.56528
# -> of_loop[-1] = 2.11836
