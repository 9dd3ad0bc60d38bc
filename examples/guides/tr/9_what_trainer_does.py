# %% [markdown]
# # 9. Trainer ne yapar, compile ne yapar?
#
# Hugging Face'in `Trainer`'ı ile `compile` ve `fit`, aynı modelleri aynı satırlarla eğitir. Bazı
# modellerde güncellemeleri, çoğunda yazdırdıkları kayıplar farklıdır. Burada ikisi de
# transformers'ın rastgele ağırlıklı, çok küçük modellerini eğitir; böylece neyin neye bölündüğünü
# sayabilirsiniz. `trainer_` ile başlayan adlar `Trainer`'ın (transformers 5.23) sayılarıdır,
# `ours_` ile başlayanlar bizimkiler.
#
# `models.from_transformers` PyTorch ister; bu kılavuz yalnızca o arka uçla çalışır.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import tempfile

import keras
import torch
import transformers

from keras_llm import losses, metrics, models

transformers.logging.set_verbosity_error()

# %% [markdown]
# ## Satırlar
#
# En çok 9 token'lık dört satır; sırasıyla 9, 3, 3 ve 5 token'ı sayılır. Dolgu 0'dır, etiketi de
# -100.

# %%
LENGTHS = torch.tensor([9, 3, 3, 5])
drawn = torch.randint(3, 20, (4, 9), generator=torch.Generator().manual_seed(0))
mask = (torch.arange(9) < LENGTHS[:, None]).long()
batch = {
    "input_ids": drawn * mask,
    "attention_mask": mask,
    "labels": drawn.masked_fill(mask == 0, -100),
}
rows = [{name: values[row] for name, values in batch.items()} for row in range(4)]
print(batch["labels"])
# -> tensor([[  10,    6,   15,   19,    5,    3,   19,   13,    9],
# ->         [   8,   19,   13, -100, -100, -100, -100, -100, -100],
# ->         [  19,   14,    3, -100, -100, -100, -100, -100, -100],
# ->         [  11,   14,   17,    3,    8, -100, -100, -100, -100]])


# %% [markdown]
# ## İkisiyle birer güncelleme
#
# İkisi de düz gradyan inişiyle, öğrenme oranı 1 iken, tek bir güncelleme yapar. Ağırlıkların
# değişimi gradyanın kendisidir; normu da güncellemenin ne kadar büyük olduğunu söyler.
# `batch_size=1` ile `parts=4`, gradyan biriktirmedir: birer satırlık dört yığın tek bir güncelleme
# yapar. Bu, dört satırlık tek bir yığının güncellemesiyle aynı olmalıdır.


# %%
def by_trainer(model, batch_size, parts=1):
    """Hugging Face's Trainer for these rows, set to one update."""
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=parts,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def by_compile(hf, parts=None):
    """The same by compile."""
    model = models.from_transformers(hf)
    model.compile(
        optimizer=keras.optimizers.SGD(1.0, gradient_accumulation_steps=parts),
        loss=losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity()],
    )
    return model


def weights_of(model):
    """All weights as one vector."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def updates(new_model):
    """The norms of four updates: in parts and at once, by Trainer and by compile."""
    start, norms = weights_of(new_model()), []
    for batch_size, parts in ((1, 4), (4, 1)):
        model = new_model()
        by_trainer(model, batch_size, parts).train()
        norms.append((weights_of(model) - start).norm().item())
    for batch_size, parts in ((1, 4), (4, None)):
        model = new_model()
        by_compile(model, parts).fit(batch, batch_size=batch_size, shuffle=False, verbose=0)
        norms.append((weights_of(model) - start).norm().item())
    return norms


# %% [markdown]
# ## Gradyan biriktirme: T5
#
# T5, kendisine verilen satırların etiketleri üzerinden ortalama alır. Dört parçada `Trainer` böyle
# dört ortalamayı toplar ve hiçbir şeye bölmez: T5'in `forward`'ı her argümanı kabul ettiği için
# `Trainer` ona dört parçanın toplam etiket sayısını verir ve modelin buna bölmesini bekler. T5
# bölmez. Bu yüzden dört parçanın güncellemesi, tek yığınınkinin 4,6 katıdır. Tam 4 katı değildir,
# çünkü 3 etiketli bir satır, 9 etiketli bir satır kadar ağır basar. BART, Marian ve Pegasus da aynı
# biçimde davranır. Bizimkinde parçaların bir etkisi yoktur.


# %%
def new_t5():
    """A T5 that always starts from the same weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0}
    config = transformers.T5Config(**sizes, **ids, num_heads=2, dropout_rate=0.0)
    return transformers.T5ForConditionalGeneration(config)


trainer_in_parts, trainer_at_once, ours_in_parts, ours_at_once = updates(new_t5)
print(f"{trainer_in_parts = :.4f}")
print(f"{trainer_at_once = :.4f}")
print(f"{ours_in_parts = :.4f}")
print(f"{ours_at_once = :.4f}")
# -> trainer_in_parts = 8.3448
# -> trainer_at_once = 1.8171
# -> ours_in_parts = 1.8171
# -> ours_at_once = 1.8171


# %% [markdown]
# ## Toplam neye bölünür: GPT-2
#
# Bir decoder sonraki token'ı tahmin eder; bir satırın ilk token'ı hiçbir zaman etiket değildir: 20
# etiketin 16'sı sayılır. `Trainer`, modelin kaybının etiketleri kaydırdığını biliyorsa sayılan
# etiketlerin sayısına böler. Llama için bunu bilir; GPT-2 ise bunu bildirmez (`loss_type` değeri
# None'dır) ve `Trainer` 20'ye böler. Gradyanı bu yüzden, parçalı da parçasız da, gerçek gradyanın
# 16/20'sidir.


# %%
SMALL = {"vocab_size": 20, "initializer_range": 0.3}


def new_gpt2():
    """A GPT-2 that always starts from the same weights."""
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**SMALL, n_embd=16, n_layer=1, n_head=2, **dropout)
    return transformers.GPT2LMHeadModel(config)


trainer_gpt2_parts, trainer_gpt2_once, ours_gpt2_parts, ours_gpt2_once = updates(new_gpt2)
print(f"{trainer_gpt2_parts / ours_gpt2_parts = :.4f}")
print(f"{trainer_gpt2_once / ours_gpt2_once = :.4f}")
print(f"{ours_gpt2_parts / ours_gpt2_once = :.4f}")
# -> trainer_gpt2_parts / ours_gpt2_parts = 0.8000
# -> trainer_gpt2_once / ours_gpt2_once = 0.8000
# -> ours_gpt2_parts / ours_gpt2_once = 1.0000


# %% [markdown]
# ## Ayrılmış satırların kaybı: Llama
#
# Llama'da `Trainer` doğru güncellemeyi yapar. Ama `eval_loss`, her satır için kendi yığınının
# ortalaması alınarak satırlar üzerinden hesaplanan bir ortalamadır; yığın boyutuna bağlıdır. Ondan
# hesapladığınız şaşkınlık da, eğitimi erken durdurma kararı da ona bağlı olur. Bizimki, hangi
# boyutta yığınlarla olursa olsun, token'lar üzerinden toplamın token sayısına bölümüdür. (GPT-2'nin
# `eval_loss`'u ayrıca 16 yerine 20'ye bölünür.)


# %%
def new_llama():
    """A Llama that always starts from the same weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**SMALL, **sizes, num_attention_heads=2, pad_token_id=0)
    return transformers.LlamaForCausalLM(config)


trainer_llama_parts, trainer_llama_once, ours_llama_parts, ours_llama_once = updates(new_llama)
print(f"{trainer_llama_parts / ours_llama_parts = :.4f}")
print(f"{trainer_llama_once / ours_llama_once = :.4f}")
trainer_eval, ours_eval, perplexity = {}, {}, {}
for size in (1, 2, 4):
    trainer_eval[size] = by_trainer(new_llama(), size).evaluate()["eval_loss"]
    logs = by_compile(new_llama()).evaluate(batch, batch_size=size, verbose=0, return_dict=True)
    ours_eval[size], perplexity[size] = logs["loss"], logs["perplexity"]
    print(f"trainer_eval[{size}] = {trainer_eval[size]:.4f}")
    print(f"ours_eval[{size}] = {ours_eval[size]:.4f}")
    print(f"perplexity[{size}] = {perplexity[size]:.3f}")
# -> trainer_llama_parts / ours_llama_parts = 1.0000
# -> trainer_llama_once / ours_llama_once = 1.0000
# -> trainer_eval[1] = 3.7440
# -> ours_eval[1] = 3.8885
# -> perplexity[1] = 48.836
# -> trainer_eval[2] = 3.8179
# -> ours_eval[2] = 3.8885
# -> perplexity[2] = 48.836
# -> trainer_eval[4] = 3.8885
# -> ours_eval[4] = 3.8885
# -> perplexity[4] = 48.836


# %% [markdown]
# ## İkisinin de yerini aldığı döngü
#
# Elle yazılmış döngü, sayılan her token'ın kaybını toplar ve bir kez token sayısına böler:
# güncellemede bütün parçaların, ayrılmış satırların kaybında bütün yığınların token'larına. Bizim
# sayılarımızı yazdırır.


# %%
def summed_loss(model, row, shifts):
    """The sum of the loss of a row's tokens, and how many there are."""
    logits = model(**{name: values[None] for name, values in row.items()}).logits
    labels = row["labels"][None]
    if shifts:
        logits, labels = logits[:, :-1], labels[:, 1:]
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
    )
    return total, (labels != -100).sum()


def loop(model, shifts):
    """The norm of the update, and the mean loss."""
    sums = [summed_loss(model, row, shifts) for row in rows]
    tokens = sum(count for _, count in sums)
    for total, _ in sums:
        (total / tokens).backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()])
    return norm.item(), (sum(total for total, _ in sums) / tokens).item()


loop_t5, _ = loop(new_t5(), shifts=False)
loop_gpt2, _ = loop(new_gpt2(), shifts=True)
_, loop_eval = loop(new_llama(), shifts=True)
print(f"{loop_t5 = :.4f}")
print(f"{ours_gpt2_once / loop_gpt2 = :.4f}")
print(f"{loop_eval = :.4f}")
# -> loop_t5 = 1.8171
# -> ours_gpt2_once / loop_gpt2 = 1.0000
# -> loop_eval = 3.8885
