"""`fit(x=...)`: corpora, tokenizers, batches, teacher forcing.

From text to `fit` there are three steps, each one call:

1. a corpus, splits of documents or of pairs: `load` a named one, or `load_text` your own files;
2. a tokenizer, text to ids and back: `train_tokenizer` on the training split, or `load_tokenizer`;
3. batches, what `fit` reads: `causal_lm` (predict the next token) or `seq2seq` (source to target).

If your rows are already ids, `teacher_forcing` is all you need.
"""

from keras_llm.data.causal_lm import causal_lm
from keras_llm.data.load import load
from keras_llm.data.load_text import load_text
from keras_llm.data.seq2seq import seq2seq
from keras_llm.data.teacher_forcing import teacher_forcing
from keras_llm.data.tokenizer import Tokenizer, load_tokenizer
from keras_llm.data.train_tokenizer import train_tokenizer

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
