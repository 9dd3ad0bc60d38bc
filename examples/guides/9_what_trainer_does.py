# %% [markdown]
# # 9. What Trainer does, what compile does
#
# Hugging Face's `Trainer` and `compile` with `fit` train the same models on the same rows. For some
# models they make different updates, and for most they print different losses. Here both train tiny
# models of transformers with random weights, so that you can count what each divides by. Names that
# start with `trainer_` are the numbers of `Trainer` (transformers 5.23), those with `ours_` are
# ours.
#
# `models.from_transformers` needs PyTorch, so this guide runs with that backend only.

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import tempfile

import keras
import torch
import transformers

from keras_llm import losses, metrics, models

transformers.logging.set_verbosity_error()

# %% [markdown]
# ## The rows
#
# Four rows of up to 9 tokens, of which 9, 3, 3 and 5 count. Padding is 0, and its label is -100.

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
# ## One update, by both
#
# Both make one update by plain gradient descent with learning rate 1. So the change of the weights
# is the gradient, and its norm tells how large the update is. `parts=4` with `batch_size=1` is
# gradient accumulation: four batches of one row make one update. It should be the update of one
# batch of four rows.


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
# ## Gradient accumulation: T5
#
# T5 takes the mean over the labels of the rows that it is given. With four parts, `Trainer` adds
# four such means and divides by nothing: since T5's `forward` accepts any argument, `Trainer` hands
# it the number of labels of all four parts, and expects it to divide by that. T5 does not. So the
# update of four parts is 4.6 times as large as that of one batch. It is not exactly 4 times as
# large, because a row of 3 labels weighs as much as one of 9. BART, Marian and Pegasus behave in
# the same way. With ours, parts do not matter.


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
# ## What the sum is divided by: GPT-2
#
# A decoder predicts the next token, so the first token of a row is never a label: of 20 labels, 16
# count. `Trainer` divides by the number of labels that count where it knows that the model's loss
# shifts them. It knows that of Llama, but GPT-2 does not tell (its `loss_type` is None), and
# `Trainer` divides by 20. So its gradient is 16/20 of the true one, with and without parts.


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
# ## The loss of held-out rows: Llama
#
# With Llama, `Trainer` makes the right update. But `eval_loss` is a mean over rows of the mean of
# their batch, so it depends on the batch size. A perplexity that you compute from it, or a decision
# to stop early, depends on it too. Ours is the sum over the tokens divided by their number, in
# batches of any size. (Of GPT-2, `eval_loss` is also divided by 20 in place of 16.)


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
# ## The loop that both replaced
#
# The loop by hand adds up the loss of each token that counts, and divides once by their number:
# for the update by the tokens of all parts, for the loss of held-out rows by those of all batches.
# It prints our numbers.


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
