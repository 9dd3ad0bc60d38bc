"""Batches without rows on TensorFlow, which a compiled step takes for any others."""

import contextlib

import keras

from keras_llm.training.arrays import EMPTY_BATCH


def without_empty(dataset):
    """A `tf.data.Dataset` of batches that fails at one without rows; see `empty_told`."""
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert
    def checked(*batch):
        x = keras.tree.flatten(batch)[0]
        if isinstance(x, tf.Tensor):
            tf.debugging.assert_positive(tf.shape(x)[0], EMPTY_BATCH)
        return batch if isinstance(dataset.element_spec, tuple) else batch[0]

    return dataset.map(checked)


@contextlib.contextmanager
def empty_told():
    """Context manager that raises `ValueError` where TensorFlow says at length what it found."""
    try:
        yield
    except Exception as error:
        if EMPTY_BATCH in str(error) and not isinstance(error, ValueError):
            raise ValueError(f"{EMPTY_BATCH} Received: a batch of 0 rows") from None
        raise
