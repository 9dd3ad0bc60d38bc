"""A `keras.Model` that takes data without training epochs of it: one batch, or one pass over it."""

import contextlib
import functools
import inspect

import keras

from keras_llm.backend.ops.device_rows import devices_of_rows
from keras_llm.checks.compile_checks import ignored_label
from keras_llm.data.data_loader import DataLoader
from keras_llm.distribution import by_all_processes, world
from keras_llm.training.arrays import (
    as_arrays,
    check_kind,
    check_row_classes,
    check_rows,
    token_weights,
)
from keras_llm.training.compile_arguments import check_compiled, check_sizes
from keras_llm.training.fit_length import batches_in
from keras_llm.training.stored_model import StoredModel
from keras_llm.training.whole_weights import with_whole_weights

BACKEND = keras.backend.backend()
if BACKEND != "torch":
    from keras_llm.training.ops.filled_batches import predicted_by_devices
    from keras_llm.training.ops.loader_batches import with_tuples


class DataModel(StoredModel):
    """A `StoredModel` with Keras's `evaluate`, `predict` and methods of one batch.

    They take lists of numbers too, and called by a callback of `fit` they leave its logs alone.
    """

    # The `FirstSkipped` of the step.
    _first_skipped = None

    @by_all_processes
    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Keras's `evaluate`. Called by a callback of `fit`, it leaves that epoch's logs alone."""
        check_compiled(self, "evaluate")
        check_sizes(batch_size=batch_size, steps=steps)
        x, y, sample_weight = self.prepared(x, y, sample_weight, batch_size=batch_size)
        if self.step is not None:
            world().meet("evaluate")
        loader = x
        # Keras's mark of the validation that fit makes, when the epoch's batches are over.
        is_validation = kwargs.get("_use_cached_eval_dataset", False)
        if self.step is not None and not is_validation:
            data = (x, y, sample_weight), batch_size, steps, False
            (x, y, sample_weight), _ = self.step.batches(*data)
        verbose = verbose if world().is_first else 0
        call = functools.partial(
            super().evaluate,
            *(x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict),
            **kwargs,
        )
        if self.step is None:
            with self.modes_kept(), whole_epoch(loader):
                return call()
        if is_validation:
            self.step.end_epoch()
        kept = contextlib.nullcontext() if is_validation else self._metrics_kept()
        with self.modes_kept(), kept, self._own_rows(x):
            self.step.begin_test(callbacks)
            try:
                with whole_epoch(loader):
                    return call()
            finally:
                self.step.end_test()

    @with_whole_weights
    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """Keras's `predict`; of several processes each predicts everything."""
        check_sizes(batch_size=batch_size, steps=steps)
        verbose = verbose if world().is_first else 0
        x, *_ = self.prepared(x, None, None, batch_size=batch_size)
        options = {"batch_size": batch_size, "verbose": verbose, "steps": steps}
        call = functools.partial(super().predict, **options)
        with self.modes_kept(), whole_epoch(x):
            if devices_of_rows() > 1:
                return predicted_by_devices(call, x, batch_size, steps, callbacks)
            try:
                return call(x, callbacks=callbacks)
            except ValueError as error:
                # What NumPy says, after everything has been computed.
                if "concatenation axis" not in str(error):
                    raise
                raise ValueError(
                    "predict joins its batches, which must be of one length: pad all rows to it, "
                    "as padding='max_length' of a tokenizer does, or call predict_on_batch with "
                    f"each batch. Received: {error}"
                ) from None

    @by_all_processes
    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`; `class_weight` weighs each token by its label."""
        x, y, sample_weight = self.prepared(x, y, sample_weight, class_weight)
        if self.step is not None:
            class_weight = None
            x, y, sample_weight = self.step.fill_up(x, y, sample_weight)
        with self.modes_kept(), self._metrics_kept(), self._skipped_told():
            return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    @by_all_processes
    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`."""
        check_compiled(self, "test_on_batch")
        x, y, sample_weight = self.prepared(x, y, sample_weight)
        if self.step is not None:
            x, y, sample_weight = self.step.fill_up(x, y, sample_weight)
        with self.modes_kept(), self._metrics_kept():
            return super().test_on_batch(x, y, sample_weight, return_dict)

    @with_whole_weights
    def predict_on_batch(self, x):
        """Keras's `predict_on_batch`."""
        x, *_ = self.prepared(x, None, None)
        with self.modes_kept():
            return super().predict_on_batch(x)

    def prepared(
        self, x, y, sample_weight, class_weight=None, batch_size=None, shuffle: bool = False
    ):
        """The arguments as arrays, the class weights as weights of tokens."""
        if self.reader is not None:
            sample_weight = self.reader.weights(x, sample_weight)
            x, y = self.reader.data(x, y, ignored_label(self.loss), batch_size, shuffle)
        if inspect.isgenerator(x):
            x = (tuple(map(as_arrays, b)) if isinstance(b, tuple) else b for b in x)
        if BACKEND != "torch":
            x = with_tuples(x)
        x, y, sample_weight = as_arrays(x), as_arrays(y), as_arrays(sample_weight)
        check_kind(x, "x")
        check_rows(x, "x")
        if y is not None:
            check_rows(y, "y")
        if batches_in((x,), batch_size, None, 0.0) == 0:
            raise ValueError("x must have at least one batch. Received: a loader of 0 batches")
        if self.step is None:
            if class_weight is not None:
                check_row_classes(y)
            return x, y, sample_weight
        return x, y, token_weights(self.step.loss, y, sample_weight, class_weight)

    @contextlib.contextmanager
    def _own_rows(self, *data):
        """Context manager in which our loaders read the rows of this process only."""
        with contextlib.ExitStack() as stack:
            for each in data:
                if self.step is not None and isinstance(each, DataLoader):
                    stack.enter_context(each.rows_of_this_process())
            yield

    def _metrics_kept(self):
        """Context manager for what a callback of `fit` may call in the middle of an epoch."""
        is_inside = self.step is not None and self.run is not None
        return self.run.metrics_kept() if is_inside else contextlib.nullcontext()

    def _skipped_told(self):
        """Context manager that tells of an update which is skipped, unless `fit` does."""
        if self.step is None or self.run is not None:
            return contextlib.nullcontext()
        return self._first_skipped.looking()


def whole_epoch(x):
    """Context manager in which one of our loaders begins at its first batch; others as they do."""
    return x.whole_epoch() if isinstance(x, DataLoader) else contextlib.nullcontext()
