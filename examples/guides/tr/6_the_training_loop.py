# %% [markdown]
# # 6. Beş adımda eğitim döngüsü
#
#     her dönem (epoch) için
#         her yığın (batch) için                                          1  yığın
#             logits = model(girdiler)                                    2  ileri geçiş (forward)
#             kayıp = logit'ler ne kadar yanlış                           3  kayıp (loss)
#             gradyanlar = ağırlıklar değişince kayıp nasıl değişir       4  geri yayılım (backward)
#             ağırlıklar = eniyileyicinin oynattığı ağırlıklar            5  güncelleme (update)
#
# Bunların hepsi bir kodlayıcı-çözücüde (encoder-decoder) görülebilir: bir dizi girer, başka bir
# dizi çıkar. Buradaki görev, bir rakam dizisini tersten yazmak. Elle yazılan döngüler PyTorch
# içindir; bu rehber başka bir arka uçta çalışmaz.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import data, losses, models, optimizers, schedules

PAD, START, END = 0, 1, 2

# %% [markdown]
# ## 1. Yığın
#
# Her seferinde birkaç satır: bütün veri belleğe sığmaz, tek satırın gradyanı ise titrektir. Bir
# yığının satırları aynı uzunluktadır; kısa olanları dolgu (0) tamamlar. Sonra yığın, modelin
# bulunduğu aygıta (CPU ya da GPU) taşınır; `fit` bunu kendisi yapar.
#
# Çözücü **öğretmen zorlamasıyla (teacher forcing)** öğrenir: her konumda kendi tahminini değil,
# doğru başlangıcı okur. Böylece baştaki bir hata gerisini bozmaz ve bütün konumlar aynı anda
# eğitilir. Okuduğu, bir konum sağa kaydırılmış hedeftir. Bir kez, yalnızca bir kez kaydırın:
# kaydırılmazsa model yanıtı okur; iki kez kaydırılırsa ona bir sonrakinin sonrası sorulur.

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

# %% [markdown]
# ## 2'den 5'e, bir kez ve elle
#
# PyTorch üzerinde bir Keras modeli aynı zamanda bir `torch.nn.Module`'dür; ileri geçişi de geri
# yayılımı da PyTorch'undur.
#
# - **İleri geçiş**: `[yığın, uzunluk, dağarcık]` biçiminde logit'ler.
# - **Kayıp**: sayılan token'lar üzerinden çapraz entropi. Eğitilmemiş modelde ln 13 dolayındadır.
# - **Geri yayılım**: kayıptan her bir ağırlığa kadar zincir kuralı.
# - **Güncelleme**: önce gradyanlar kırpılır (gradient clipping), normları en çok 1 olur: derin
#   ağlarda patlayabilirler. Sonra eniyileyici ağırlıkları oynatır ve aynı yığının kaybı küçülür.


# %%
def new_model(cls=models.Seq2SeqTransformer):
    """A small model that always starts from the same weights."""
    keras.utils.set_random_seed(0)
    return cls(13, d_model=16, num_layers=1, num_heads=2, max_length=8, dropout=0.0)


def tensors(rows):
    """1. A batch, on the model's device."""
    arrays = (sources[rows], decoder_ids[rows], labels[rows])
    return [torch.tensor(array).to(device) for array in arrays]


model = new_model()
device = next(model.parameters()).device
criterion = torch.nn.CrossEntropyLoss(ignore_index=PAD)
encoder_ids, read, target = tensors(slice(0, 8))
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

# %% [markdown]
# ## Beşi birden, `compile` ve `fit` ile
#
# `compile` 3. ve 5. adımın adını koyar; `fit` onların çevresindeki iki döngüdür.


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


# %% [markdown]
# ## Kendi adımınız
#
# `fit`i geri çağrıları (callback), doğrulaması ve kayıtlarıyla birlikte tutup bir adımda olanları
# değiştirmek için `train_step`i yeniden tanımlayın. Buradaki, beş adımın Keras diliyle yazılmış
# hâlidir; kendi düşüncenizi satırların arasına yerleştirin.


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


of_my_step = compiled(new_model(MyModel)).fit(inputs, labels, **arguments).history["loss"]
print(f"{of_my_step[-1] = :.5f}")

# %% [markdown]
# ## `fit`in yerini aldığı döngü
#
# Yukarıdan başlayıp aşağıya kadar izleyin: eğitimde bundan başka bir şey olmaz. Dönemin sonunda
# kaybın token'lar üzerinden ortalaması alınır; modelin öğrenip öğrenmediği oradan görülür.

# %%
model = new_model()
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
of_loop = []
for _ in range(5):
    total_loss, tokens = 0.0, 0
    for first_row in range(0, 32, 8):
        encoder_ids, read, target = tensors(slice(first_row, first_row + 8))
        optimizer.zero_grad()
        logits = model({"encoder_ids": encoder_ids, "decoder_ids": read}, training=True)
        loss = criterion(logits.view(-1, 13), target.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        count = (target != PAD).sum().item()
        total_loss, tokens = total_loss + loss.item() * count, tokens + count
    of_loop.append(total_loss / tokens)
print(f"{of_loop[0] = :.5f}")
print(f"{of_loop[-1] = :.5f}")
