"""`fit(x=...)`: corpora, tokenizers, batches, teacher forcing.

From text to `fit` there are three steps, each one call:

1. a corpus, splits of documents or of pairs: `load` a named one, or `load_text` your own files;
2. a tokenizer, text to ids and back: `train_tokenizer` on the training split, or `load_tokenizer`;
3. batches, what `fit` reads: `causal_lm` (predict the next token), `seq2seq` (source to target) or
   `instruction` (chats, of which the answers count).

Text that is larger than memory is encoded once by `tokens`, and `causal_lm` reads the files.

A tokenizer of Hugging Face transformers, fast or slow, is accepted wherever ours is. Labels of
padding are then -100, the default `ignore_index` of losses and metrics.

If your rows are already ids, `teacher_forcing` is all you need.
"""

from keras_llm.data.causal_lm import causal_lm
from keras_llm.data.instruction import instruction
from keras_llm.data.load import load
from keras_llm.data.load_text import load_text
from keras_llm.data.load_tokenizer import load_tokenizer
from keras_llm.data.seq2seq import seq2seq
from keras_llm.data.show import ShownBatch, show
from keras_llm.data.teacher_forcing import teacher_forcing
from keras_llm.data.token_shards import TokenShards
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.data.tokens import tokens
from keras_llm.data.train_tokenizer import train_tokenizer

__all__ = [
    "ShownBatch",
    "TokenShards",
    "Tokenizer",
    "causal_lm",
    "instruction",
    "load",
    "load_text",
    "load_tokenizer",
    "seq2seq",
    "show",
    "teacher_forcing",
    "tokens",
    "train_tokenizer",
]
