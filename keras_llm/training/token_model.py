"""A `keras.Model` whose training is exact per token: `compile` and `fit`."""

import keras

from keras_llm.checks.compile_checks import compile_messages
from keras_llm.checks.first_batch import FirstBatch
from keras_llm.checks.sanity_warning import warn
from keras_llm.distribution import by_all_processes
from keras_llm.losses import MaskedLoss
from keras_llm.names_elsewhere import check_names
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
    check_thawed,
    resolve,
)
from keras_llm.training.data_model import DataModel
from keras_llm.training.finite_guard import FiniteGuard, FirstSkipped
from keras_llm.training.fit_data import fit_data
from keras_llm.training.fit_length import FitLength, check_length, last_epoch
from keras_llm.training.run import Run
from keras_llm.training.shared_sums import SharedSums, flat
from keras_llm.training.step_callback import StepCallback
from keras_llm.training.training_logs import TrainingLogs
from keras_llm.training.user_callbacks import callback_list

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    from keras_llm.training.torch.process_step import make_step
else:
    from keras_llm.training.ops.step import CompiledStep as make_step


class TokenModel(DataModel):
    """A `keras.Model` whose `loss`, `val_loss` and metrics are exact per token.

    Keras logs the mean of its batches' means. Compiled with one of our losses, this model has a
    `step`, which does in sums what Keras's own step does in means. With any other loss `step` is
    None, and Keras's own step runs unchanged.
    """

    # What compile has warned of.
    _warned = ()

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
            class_weight: Weighs each token by its label; needs `y` as an array. What
                `validation_split` holds out is not weighed.
            steps: The number of batches to train on, in place of `epochs`: the data goes round as
                often as it takes. An epoch is still one pass over the data, and the last one ends
                early. With `steps_per_execution`, it ends with the call that reaches the number.
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
        check_compiled(self, "fit")
        check_no_fit(self, "fit")
        check_thawed(self)
        check_length(epochs, steps, tokens, self.step)
        sizes = {name: kwargs.get(name) for name in SIZES}
        initial_epoch = kwargs.pop("initial_epoch", 0)
        check_sizes(validation_split, initial_epoch, batch_size=batch_size, **sizes)
        data = fit_data(
            self,
            (x, y, sample_weight),
            validation_data,
            class_weight=class_weight,
            batch_size=batch_size,
            shuffle=shuffle,
            validation_split=validation_split,
            sizes=sizes,
        )
        ours, first_batch = [], None
        if self.step is not None:
            ours += [StepCallback(self.step, callbacks), TrainingLogs()]
            if not any(isinstance(c, FiniteGuard) for c in callback_list(callbacks)):
                ours.append(FiniteGuard())
        if type(self).compute_loss is TokenModel.compute_loss:
            # Nobody knows what another one does with labels.
            first_batch = FirstBatch(self, data.given, self._warned)
            ours.append(first_batch)
        epochs = last_epoch(data.given[0], data.batches, epochs, initial_epoch, steps, tokens)
        length = FitLength(data.batches, epochs, steps, tokens)
        run = Run(self, data.given, ours, callbacks, length, verbose)
        run.begin_at(initial_epoch)
        self.run, self._waiting = run, first_batch
        try:
            run.begin()
            if run.position.batch or not run.is_over():
                x, y, sample_weight = data.taken
                with self.modes_kept(), self._own_rows(x, data.validation_data):
                    super().fit(
                        *(x, y, batch_size, epochs, verbose, run),
                        validation_split=data.validation_split,
                        validation_data=data.validation_data,
                        shuffle=data.shuffle,
                        class_weight=class_weight if self.step is None else None,
                        sample_weight=sample_weight,
                        initial_epoch=run.position.epoch,
                        **kwargs,
                    )
            run.place_data()
            return run.history
        finally:
            self._waiting = self.run = None
            if self.step is not None:
                self.step.end_fit()
            run.end()

    def how_to_train(self) -> str:
        """What to write where no weight is trainable and some should be; empty by default."""
        return ""
