# %% [markdown]
# # 1. What `compile` means
#
# A language model reads tokens and predicts the next one. To train it, three things must be
# decided, and `compile` is where they are written down:
#
# - **loss**: how wrong is a prediction? One number, which training makes smaller.
# - **optimizer**: how are the weights changed, once the loss has said in which direction?
# - **metrics**: what do people look at meanwhile? They change nothing.
#
# The words that all guides use:
#
# | word | meaning |
# | --- | --- |
# | token | a word, a part of one, or a character; the model sees its number, the id |
# | vocabulary | all tokens that the model knows; V is how many |
# | label | the token that was right, here the next token |
# | logits | V scores a position; softmax makes probabilities of them |
# | padding | filler at the end of short rows, so that a batch is a rectangle |
# | masking | leaving tokens, above all padding, out of the loss |
# | loss | how wrong the model is; for us the mean of -ln p(label) |
# | perplexity | exp(mean loss): how many tokens the model hesitates between |
# | gradient | how the loss changes with each weight |
# | learning rate | how far a weight moves in one update |
# | weight decay | pulls weights towards 0 a little at each update |
# | label smoothing | asks the model not to be quite sure |
# | batch, epoch | the rows of one update; one pass over all data |
# | teacher forcing | the model reads the right beginning, not its own guesses |

# %%
import keras_llm  # noqa: F401  isort: skip  (first: it chooses the backend)
import keras
import numpy as np
import torch

from keras_llm import losses, metrics, models, optimizers

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A text as ids
#
# A token here is a word. Id 0 is kept for padding. The label at each position is the token after
# it, so inputs and labels are the same ids, shifted by one. With V tokens, ids go from 0 to V - 1:
# a model needs the vocabulary size of the tokenizer that made the ids.

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
# ## A model
#
# A `LanguageModel` is a backbone, from ids to vectors, and a head, from vectors to logits of the
# shape `[batch, length, vocabulary]`. This one is the smallest that there is: its backbone looks a
# vector up for each token, so it knows only the token before. Its head starts with zeros.

# %%
head = keras.layers.Dense(vocab_size, kernel_initializer="zeros")
model = models.LanguageModel(keras.layers.Embedding(vocab_size, 16), head)
print("logits", tuple(model(x).shape))

# %% [markdown]
# ## Compile
#
# - `AdamW` is what transformers are trained with; guide 4 is about its numbers.
# - The loss is the cross entropy of each token; `ignore_index=0` leaves padding out: guide 2.
# - Of the metrics, perplexity is the one to watch: guide 3.
#
# A model that knows nothing gives every token the same probability, 1/V. So the first loss should
# be -ln(1/V) = ln V, and the perplexity V. If yours is far from that, look for the mistake now.

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
# `explain` says on one screen what was decided, and flags what is unusual. It is right about the
# learning rate: only a toy can stand one so high.

# %%
model.explain()

# %% [markdown]
# ## Fit
#
# `fit` repeats one step for every batch: predict, measure the loss, find the gradient, move the
# weights. It cannot reach loss 0 here: after "the" there are four words, and a model that sees one
# token can only say one in four. That costs ln 4 at 4 of the 13 positions, and no less.

# %%
start = [np.array(weight) for weight in model.get_weights()]
history = model.fit(x, y, epochs=60, verbose=0).history
print(f"{history['loss'][0] = :.6f}")
print(f"{history['loss'][-1] = :.6f}")
print(f"{history['perplexity'][-1] = :.6f}")
print(f"{4 * np.log(4) / 13 = :.6f}")

# %% [markdown]
# ## The loop that `fit` replaced
#
# The same in plain PyTorch, from the same weights. Logits are flattened to `[batch * length, V]`
# and labels to `[batch * length]`, as `CrossEntropyLoss` wants them. Biases do not decay.

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
