"""`fit(x=...)`: corpora, tokenizers, batches, teacher forcing.

The way from words to `fit` has three steps, each one call:

1. a corpus: `load` a named one, or `load_text` from your own file: splits of documents or pairs;
2. a tokenizer: `train_tokenizer` on the training split, or `load_tokenizer`: text to ids and back;
3. batches: `causal_lm` (predict the next token) or `seq2seq` (source to target): what `fit` reads.

Rows that are already ids need only `teacher_forcing`.
"""

from keras_llm.data.causal_lm import causal_lm
from keras_llm.data.load import load
from keras_llm.data.load_text import load_text
from keras_llm.data.seq2seq import seq2seq
from keras_llm.data.teacher_forcing import teacher_forcing
from keras_llm.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "Tokenizer",
    "causal_lm",
    "load",
    "load_text",
    "load_tokenizer",
    "seq2seq",
    "teacher_forcing",
    "train_tokenizer",
]
