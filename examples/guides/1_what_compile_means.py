# %% [markdown]
# # 1. What `compile` means
#
# A language model reads tokens and predicts the next one. To train it, you decide three things,
# and `compile` is where you write them down:
#
# - **loss**: one number that says how wrong the predictions are. Training makes it smaller.
# - **optimizer**: the rule by which the weights are changed to make the loss smaller.
# - **metrics**: numbers for people to watch. They do not change the training.
#
# The words that all guides use:
#
# | word | meaning |
# | --- | --- |
# | token | a word, a part of a word, or a character; the model sees its number, the id |
# | vocabulary | all tokens that the model knows; V is their number |
# | label | the correct token; here it is the next token of the text |
# | embedding | a table with one vector for each token |
# | backbone | the first part of a model: ids in, one vector for each position out |
# | head | the last part of a model: it turns each vector into logits |
# | logits | V scores for each position; softmax turns them into probabilities |
# | padding | filler at the end of short rows, so that all rows of a batch have one length |
# | masking | leaving some tokens, above all padding, out of the loss |
# | loss | how wrong the model is; here the mean of -ln p(label) |
# | perplexity | exp(mean loss); at k, the model is as uncertain as in a choice among k tokens |
# | gradient | how the loss changes when a weight changes, for each weight |
# | learning rate | how far a weight moves in one update |
# | weight decay | each update moves the weights a little towards 0 |
# | label smoothing | training for a probability a little below 1 for the label |
# | batch, epoch | the rows of one update; one pass over all the data |
# | teacher forcing | the decoder reads the correct tokens so far, not its own predictions |
#
# Below each piece of code is what it prints with PyTorch; in the file, these lines start with
# `# ->`. Another backend draws other random weights, so some of its numbers differ.

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
# Here a token is a word. Id 0 is kept for padding. The label at each position is the token after
# it. So inputs and labels are the same ids, shifted by one position. With V tokens, the ids go from
# 0 to V - 1. The model's vocabulary size must be that of the tokenizer that made the ids.

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
# ## A model
#
# A `LanguageModel` has two parts. The backbone turns ids into vectors. The head turns vectors into
# logits of the shape `[batch, length, vocabulary]`.
#
# This model is as small as possible. Its backbone is only an embedding: the vector at a position
# depends on the token at that position and on nothing else. So the model predicts the next token
# from the current token alone. Its head starts with zeros, so all logits are 0 at first.

# %%
head = keras.layers.Dense(vocab_size, kernel_initializer="zeros")
model = models.LanguageModel(keras.layers.Embedding(vocab_size, 16), head)
print("logits", tuple(model(x).shape))
# -> logits (1, 13, 9)

# %% [markdown]
# ## Compile
#
# - `AdamW` is the usual optimizer for transformers. Guide 4 explains its settings.
# - The loss is the cross entropy of each token; `ignore_index=0` leaves padding out: guide 2.
# - Of the metrics, perplexity is the one to watch: guide 3.
#
# An untrained model gives every token about the same probability, 1/V. So the first loss should be
# near -ln(1/V) = ln V, and the perplexity near V. If yours is far from that, look for the mistake
# before you train on.

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
# `explain` prints on one screen what `compile` decided, and marks unusual settings with ▲. Here it
# marks the learning rate: 0.03 is too high for any model but a tiny one.

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
# `fit` repeats one step for every batch: predict, compute the loss, compute the gradient, update
# the weights.
#
# The loss cannot reach 0 here. Four different words follow "the", each of them once, and the model
# sees no other token. The best that it can do is to give each of the four the probability 1/4.
# That costs ln 4 at 4 of the 13 positions.

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
# ## The loop that `fit` replaced
#
# The same training in plain PyTorch, from the same initial weights. `CrossEntropyLoss` needs the
# logits as `[batch * length, V]` and the labels as `[batch * length]`. Biases do not decay: guide 4
# says why.

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
