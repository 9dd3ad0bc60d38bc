"""Texts to ids on all cores, in the order of the texts."""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np

from keras_llm.data.data_loader import START_METHOD
from keras_llm.data.hugging_face_tokenizer import HuggingFaceTokenizer
from keras_llm.data.token_array import encode_texts
from keras_llm.data.tokenizer import Tokenizer

Encoded = tuple[np.ndarray, np.ndarray]
# Threads of the tokenizers library are on all cores; with two of ours, one list of texts is encoded
# while Python reads, converts and writes others.
THREADS = 2


@contextlib.contextmanager
def text_encoder(tokenizer) -> Iterator[Callable[[Iterable[list[str]]], Iterator[Encoded]]]:
    """Context manager: a function from lists of texts to their ids and the ends of the texts.

    The tokenizers library encodes on all cores by itself. A tokenizer of transformers that is
    written in Python does not, so that a process for each core encodes with it.

    Args:
        tokenizer: What `as_tokenizer` returned.
    """
    encode = functools.partial(
        encode_documents, tokenizer, tuple(getattr(tokenizer, "begin_ids", ()))
    )
    is_hugging_face = isinstance(tokenizer, HuggingFaceTokenizer)
    if is_hugging_face and not tokenizer.tokenizer.is_fast:
        cores, executor = num_cores(), _processes(encode)
        encode = _encode_in_process
    else:
        # Of others it is not known whether threads may share them.
        cores = THREADS if is_hugging_face or isinstance(tokenizer, Tokenizer) else 1
        executor = ThreadPoolExecutor(cores)
    with executor:
        try:
            yield functools.partial(in_order, executor, encode, cores + 1)
        finally:
            executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def id_reader(tokenizer) -> Iterator[Callable[[Iterable[np.ndarray]], Iterator[Encoded]]]:
    """Context manager: as `text_encoder`, for ids that a file holds already: they are checked."""
    yield functools.partial(map, functools.partial(checked_ids, tokenizer))


def checked_ids(tokenizer, ids: np.ndarray) -> Encoded:
    """The ids, and the end of each document among them; the last one ends with them.

    Raises:
        ValueError: the tokenizer has no such ids.
    """
    if (largest := ids.max()) >= tokenizer.vocab_size:
        raise ValueError(
            f"source must hold ids of the tokenizer, which are below {tokenizer.vocab_size}. "
            f"Received: the id {largest}"
        )
    if tokenizer.pad_id is not None and (ids == tokenizer.pad_id).any():
        raise ValueError(
            "source must not hold the id of padding, which is neither read nor learnt. "
            f"Received: pad_id={tokenizer.pad_id}; a tokenizer loaded with pad_token=None has none"
        )
    ends = np.flatnonzero(ids == tokenizer.end_id) + 1
    return ids, ends if len(ends) and ends[-1] == len(ids) else np.append(ends, len(ids))


def encode_documents(tokenizer, start: tuple[int, ...], texts: list[str]) -> Encoded:
    """The ids of texts, one after another, and the end of each among them."""
    ids, offsets = encode_texts(texts, tokenizer, start, end=(tokenizer.end_id,))
    return ids, offsets[1:]


def in_order(executor: Executor, function: Callable, at_once: int, arguments: Iterable) -> Iterator:
    """The results of a function, of which at most `at_once` are computed or kept."""
    waiting: collections.deque = collections.deque()
    for argument in arguments:
        waiting.append(executor.submit(function, argument))
        if len(waiting) == at_once:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processes(encode) -> ProcessPoolExecutor:
    import multiprocessing

    context = multiprocessing.get_context(START_METHOD)
    return ProcessPoolExecutor(num_cores(), context, initializer=_keep, initargs=(encode,))


def _keep(encode):
    global _encode
    _encode = encode


def _encode_in_process(texts):
    return _encode(texts)
