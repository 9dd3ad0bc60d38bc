"""A `keras.Model` whose training is exact per token: `compile`, `fit`, `evaluate`, saving."""

import contextlib
import functools
import inspect

import keras

from keras_llm.backend.ops.device_rows import devices_of_rows
from keras_llm.checks.compile_checks import compile_messages, ignored_label
from keras_llm.checks.first_batch import FirstBatch
from keras_llm.checks.sanity_warning import warn
from keras_llm.data.data_loader import DataLoader
from keras_llm.distribution import by_all_processes, world
from keras_llm.losses import MaskedLoss
from keras_llm.names_elsewhere import check_names
from keras_llm.training.arrays import (
    as_arrays,
    check_rows,
    has_rows,
    split_rows,
    three_parts,
    token_weights,
)
from keras_llm.training.compile_arguments import (
    COMPILE_NAMES,
    FIT_NAMES,
    SIZES,
    check_arguments,
    check_compiled,
    check_execution,
    check_no_fit,
    check_not_of_torch,
    check_sizes,
    resolve,
)
from keras_llm.training.finite_guard import FiniteGuard, FirstSkipped
from keras_llm.training.fit_length import batches_in, check_length, last_epoch
from keras_llm.training.run import Run
from keras_llm.training.shared_sums import SharedSums, flat
from keras_llm.training.step_callback import StepCallback
from keras_llm.training.stored_model import StoredModel
from keras_llm.training.training_logs import TrainingLogs
from keras_llm.training.user_callbacks import callback_list
from keras_llm.training.whole_weights import with_whole_weights

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    from keras_llm.training.torch.process_step import make_step
else:
    from keras_llm.training.ops.filled_batches import predicted_by_devices
    from keras_llm.training.ops.loader_batches import with_tuples
    from keras_llm.training.ops.step import CompiledStep as make_step


class TokenModel(StoredModel):
    """A `keras.Model` whose `loss`, `val_loss` and metrics are exact per token.

    Keras logs the mean of its batches' means. Compiled with one of our losses, this model has a
    `step`, which does in sums what Keras's own step does in means. With any other loss `step` is
    None, and Keras's own step runs unchanged.
    """

    # What compile has warned of.
    _warned = ()
    # The `FirstSkipped` of the step.
    _first_skipped = None

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        micro_batch_size: int | str | None = None,
        **kwargs,
    ):
        """Keras's `compile`, with the loss and the metrics checked against each other.

        Warns, with a `SanityWarning`, when a metric counts tokens that the loss ignores, when the
        loss and the model disagree about logits, and when the learning rate is far from usual.
        Arguments that are not named here are as for `keras.Model.compile`.

        Args:
            jit_compile: On PyTorch, whether `torch.compile` makes kernels of the backbone's graph.
                `"auto"` does it where it pays: where compiling takes less than a tenth of the time
                that is to come. `explain` shows what was decided.
            micro_batch_size: How many rows of `fit`'s batch are in memory at once; the update is
                that of the whole batch. `"auto"` starts with the whole batch and, on PyTorch,
                halves when memory runs out.

        Raises:
            TypeError: the optimizer or the loss is one of PyTorch, or an argument has another name
                here.
            ValueError: the loss has `reduction="none"`, which leaves nothing to minimise;
                `loss_weights` come with one of our losses; `micro_batch_size` comes with another
                loss or is not a number of rows.
            RuntimeError: training would run on several devices, where the backend cannot; or a
                callback of `fit` calls this.
        """
        check_names(TokenModel.compile, kwargs, COMPILE_NAMES)
        check_no_fit(self, "compile")
        check_not_of_torch(optimizer=optimizer, loss=loss)
        check_execution(optimizer, run_eagerly, steps_per_execution, jit_compile)
        if isinstance(loss, list | tuple) and len(loss) == 1:
            # One output, as Keras also lets it be written.
            (loss,) = loss
        loss = keras.losses.get(loss) if isinstance(loss, str | type) else loss
        metrics, weighted_metrics = resolve(metrics), resolve(weighted_metrics)
        optimizer = keras.optimizers.get(optimizer)
        kwargs |= {
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": jit_compile,
            "auto_scale_loss": auto_scale_loss,
        }
        is_ours = isinstance(loss, MaskedLoss)
        check_arguments(loss if is_ours else None, loss_weights, micro_batch_size)
        if self.step is not None:
            self.step.give_back_accumulation()
        self.step, self._step_functions = None, {}
        if is_ours:
            sums = SharedSums(loss, metrics, weighted_metrics)
            # Keras gets what is not counted there; an empty list clears what it had before.
            again = [] if self.compiled else None
            left, left_weighted = sums.left or again, sums.left_weighted or again
            super().compile(optimizer, metrics=left, weighted_metrics=left_weighted, **kwargs)
            self.loss = loss
            self.step = make_step(self, self.optimizer, sums, micro_batch_size, jit_compile)
            self._first_skipped = FirstSkipped(self.step)
        else:
            super().compile(optimizer, loss, loss_weights, metrics, weighted_metrics, **kwargs)
        every_metric = [*flat(metrics), *flat(weighted_metrics)]
        self._warned = compile_messages(self, optimizer, loss, every_metric)
        for message in self._warned:
            warn(message)

    @by_all_processes
    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=None,
        class_weight=None,
        sample_weight=None,
        *,
        steps: int | None = None,
        tokens: int | None = None,
        **kwargs,
    ):
        """Keras's `fit`; with a loss of tokens its logs have what `TrainingLogs` adds.

        Warns, with a `SanityWarning`, of what is wrong with the first batch. Arguments that are not
        named here are as for `keras.Model.fit`.

        Args:
            class_weight: Weighs each token by its label; needs `y` as an array.
            steps: The number of batches to train on, in place of `epochs`: the data goes round as
                often as it takes. An epoch is still one pass over the data, and the last one ends
                early.
            tokens: The number of tokens to train on, in place of `epochs`: `fit` ends at the first
                log point (every 10 steps) with so many. It needs a loss of keras_llm.

        Returns:
            A `RunHistory`: Keras's `History`, and in `history.steps` the numbers of every 10 steps.

        Raises:
            ValueError: `steps` or `tokens` is not a positive integer, or comes with the other one
                or with `epochs`.
            RuntimeError: a callback of `fit` calls this.
        """
        check_names(keras.Model.fit, kwargs, FIT_NAMES)
        check_no_fit(self, "fit")
        check_length(epochs, steps, tokens, self.step)
        check_sizes(
            validation_split,
            kwargs.get("initial_epoch", 0),
            batch_size=batch_size,
            **{name: kwargs.get(name) for name in SIZES},
        )
        x, y, sample_weight = self._prepared(
            x, y, sample_weight, class_weight, batch_size, shuffle is not False
        )
        if self.step is not None:
            class_weight = None
        if shuffle is None:
            # Others have an order of their own, and Keras warns that it does not change it.
            shuffle = has_rows(x) or getattr(x, "num_batches", None) is not None
        rows = kwargs.get("validation_batch_size") or batch_size
        if isinstance(validation_data, list):
            validation_data = tuple(validation_data)
        is_read = BACKEND != "torch" or self.reader is not None
        if is_read and not isinstance(validation_data, tuple | None):
            validation_data = (validation_data,)
        if isinstance(validation_data, tuple):
            held_out = three_parts(validation_data, "validation_data")
            validation_data = self._prepared(*held_out, batch_size=rows)
        ours = []
        if self.step is not None:
            ours += [StepCallback(self.step, callbacks), TrainingLogs()]
            if not any(isinstance(c, FiniteGuard) for c in callback_list(callbacks)):
                ours.append(FiniteGuard())
        if type(self).compute_loss is TokenModel.compute_loss:
            # Nobody knows what another one does with labels.
            ours.append(FirstBatch(self, (x, y, sample_weight), self._warned))
        if self.step is not None and validation_split and devices_of_rows() > 1:
            # Keras splits arrays only, and batches that are filled up are none.
            if validation_data is None:
                parts = split_rows((x, y, sample_weight), validation_split)
                (x, y, sample_weight), validation_data = parts
            validation_split = 0.0
        data, labels, steps_per_epoch = x, (y, sample_weight), kwargs.get("steps_per_epoch")
        batches = batches_in((x, y, sample_weight), batch_size, steps_per_epoch, validation_split)
        if self.step is not None and not validation_split:
            given = (x, y, sample_weight), batch_size, steps_per_epoch, shuffle
            (x, y, sample_weight), shuffle = self.step.batches(*given)
        if self.step is not None and isinstance(validation_data, tuple):
            given = validation_data, rows, kwargs.get("validation_steps"), False
            validation_data, _ = self.step.batches(*given)
        initial_epoch = kwargs.pop("initial_epoch", 0)
        epochs = last_epoch(data, batches, epochs, initial_epoch, steps, tokens)
        limits = {"batches": batches, "epochs": epochs, "steps": steps, "tokens": tokens}
        run = Run(self, data, ours, callbacks, labels=labels, verbose=verbose, **limits)
        run.begin_at(initial_epoch)
        kwargs |= {
            "validation_split": validation_split,
            "validation_data": validation_data,
            "shuffle": shuffle,
            "class_weight": class_weight,
            "sample_weight": sample_weight,
        }
        self.run = run
        self._waiting = next((c for c in ours if isinstance(c, FirstBatch)), None)
        try:
            run.begin()
            if run.is_over() and not run.position.batch:
                run.place_data()
                return run.history
            kwargs["initial_epoch"] = run.position.epoch
            with self.modes_kept(), self._own_rows(x, validation_data):
                history = super().fit(x, y, batch_size, epochs, verbose, run, **kwargs)
            run.place_data()
            return history
        finally:
            self._waiting = self.run = None
            if self.step is not None:
                self.step.end_fit()
            run.end()

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
        x, y, sample_weight = self._prepared(x, y, sample_weight, batch_size=batch_size)
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
        x, *_ = self._prepared(x, None, None, batch_size=batch_size)
        options = {"batch_size": batch_size, "verbose": verbose, "steps": steps}
        call = functools.partial(super().predict, **options)
        with self.modes_kept(), whole_epoch(x):
            if devices_of_rows() == 1:
                return call(x, callbacks=callbacks)
            return predicted_by_devices(call, x, batch_size, steps, callbacks)

    @by_all_processes
    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`; `class_weight` weighs each token by its label."""
        x, y, sample_weight = self._prepared(x, y, sample_weight, class_weight)
        if self.step is not None:
            class_weight = None
            x, y, sample_weight = self.step.fill_up(x, y, sample_weight)
        with self.modes_kept(), self._metrics_kept(), self._skipped_told():
            return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    @by_all_processes
    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`."""
        check_compiled(self, "test_on_batch")
        x, y, sample_weight = self._prepared(x, y, sample_weight)
        if self.step is not None:
            x, y, sample_weight = self.step.fill_up(x, y, sample_weight)
        with self.modes_kept(), self._metrics_kept():
            return super().test_on_batch(x, y, sample_weight, return_dict)

    @with_whole_weights
    def predict_on_batch(self, x):
        """Keras's `predict_on_batch`."""
        x, *_ = self._prepared(x, None, None)
        with self.modes_kept():
            return super().predict_on_batch(x)

    def _prepared(
        self, x, y, sample_weight, class_weight=None, batch_size=None, shuffle: bool = False
    ):
        """The arguments as arrays, the class weights as weights of tokens."""
        if self.reader is not None:
            x, y = self.reader.data(x, y, ignored_label(self.loss), batch_size, shuffle)
        if inspect.isgenerator(x):
            x = (tuple(map(as_arrays, b)) if isinstance(b, tuple) else b for b in x)
        if BACKEND != "torch":
            x = with_tuples(x)
        x, y, sample_weight = as_arrays(x), as_arrays(y), as_arrays(sample_weight)
        check_rows(x, "x")
        if self.step is None:
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
