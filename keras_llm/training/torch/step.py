"""The training step on PyTorch: forward, loss, backward, update."""

import contextlib
import functools
import warnings

import keras
import torch

from keras_llm.backend.keras_private import all_layers
from keras_llm.backend.layer_settings import LayerSettings
from keras_llm.backend.torch.gradient_clipping import global_norm
from keras_llm.data.process_rows import RowsOfOneProcess
from keras_llm.distribution import sharded, world
from keras_llm.optimizers.optimizer import Optimizer
from keras_llm.token_statistics import skipped_weights
from keras_llm.training.arrays import as_arrays
from keras_llm.training.forward_pass import unit_of
from keras_llm.training.step import Step
from keras_llm.training.step_facts import (
    GuardSettings,
    Processes,
    SkippedUpdates,
    StepDescription,
)
from keras_llm.training.torch.captured_layer import CapturedLayer
from keras_llm.training.torch.compile_policy import CompilePolicy
from keras_llm.training.torch.gradient_accumulator import (
    GradientAccumulator,
    GradientNorms,
    add_gradients,
    loss_scale,
)
from keras_llm.training.torch.gradient_sum import bytes_sent
from keras_llm.training.torch.host_batches import copied, label_counts, on_host, uses_gpu
from keras_llm.training.torch.host_copies import HostCopies
from keras_llm.training.torch.log_throttle import LogThrottle
from keras_llm.training.torch.micro_batches import MicroBatches, Snapshot
from keras_llm.training.torch.pass_graph import PassGraph, PassGraphs
from keras_llm.training.torch.ranks import EVERY, Ranks
from keras_llm.training.torch.seen_layers import layers_seen
from keras_llm.training.torch.sharded_optimizer import ShardedOptimizer
from keras_llm.training.torch.sharded_parameters import ShardedParameters
from keras_llm.training.torch.trained_variables import TrainedVariables
from keras_llm.training.torch.update_guard import UpdateGuard

# What Keras says where it is handed none.
NO_GRADIENTS = "No gradients provided for any variable."


class TorchStep(Step):
    """`Step`, with gradients in `.grad` and the backbone as captured graphs."""

    def __init__(self, *arguments):
        check_one_device()
        # Where several processes train: their part in it.
        self.ranks = None if world().size == 1 else Ranks(world())
        super().__init__(*arguments)
        self.shard, self.sharded = sharded(), None
        if self.ranks is not None and self.shard is not None:
            self.sharded = self.ranks.sharded = ShardedOptimizer(self.ranks.group, self.optimizer)
            self.divided = self.shard
        self.parameters = None
        if self.sharded is not None and self.shard == "parameters":
            self.parameters = ShardedParameters(self.sharded, self)
        self.accumulator = GradientAccumulator(self.accumulation, self.sums_gradients)
        self.micro_batches = MicroBatches(self.micro_batch_size)
        self.policy = CompilePolicy(self.jit_compile)
        self.norms, self.guard = GradientNorms(), UpdateGuard()
        # The tensors of the epoch's sums.
        self._sums = None
        self.captured = self.passes = None
        self._settings = self._trained = None
        self._has_looked = False
        # Of the `fit` and the `evaluate` that run, the innermost last.
        self._throttles = []

    # Batches

    def batches(self, data, batch_size, steps, shuffle):
        """On a GPU, batches that Keras does not copy there itself: it would wait for the copy."""
        taken = on_host(data, batch_size, steps, shuffle)
        return (data, shuffle) if taken is None else ((taken, None, None), False)

    @skipped_weights()
    def train_batch(self, data):
        """One batch, and an update if enough batches are there; returns the logs."""
        self.check_ranks()
        data, has_rows = self.on_device(data)
        x, y, *_ = data
        self.look_at_layers(x)
        positions = self.note_shape(y)
        trained = self.trained()
        if self.ranks is not None and not self.ranks.has_met:
            self.meet()
        if not trained.variables:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
            return self.forward_only(data, training=True) if has_rows else self.logs()
        if self.accumulator.batches == 0:
            unit = unit_of(positions)
            unit = unit if self.ranks is None else self.ranks.begin_window(trained, unit)
            self.accumulator.start(trained.every_tensor, unit)
        guard = self.guard if self.guard.settings.skip else None
        if guard is not None:
            guard.begin_batch(self.epoch_sums(), trained.state)
        if self.held is not None:
            self.held.append(data)
        if self.parameters is not None:
            logs = self.passes_of_all(data, trained, has_rows)
        else:
            logs = self.backward_passes(data, trained) if has_rows else None
        trained.forget_constants()
        if guard is not None and guard.end_batch():
            logs = None
        if self.accumulator.is_full_with_this_batch():
            self.apply_update()
        return self.logs() if logs is None else logs

    def backward_passes(self, data, trained):
        """Forward and backward of a batch, in micro-batches; returns logs as `logs_of`."""
        undo = None
        if self.micro_batch_size == "auto":
            undo = Snapshot([*self.model.metrics_variables, *self.model.non_trainable_variables])
        run = functools.partial(self.backward_pass, trained, undo)
        if self.ranks is None:
            return self.micro_batches.run(data, run, undo)
        with self.ranks.own_random_numbers():
            return self.micro_batches.run(data, run, undo)

    def passes_of_all(self, data, trained, has_rows):
        """`backward_passes`, as many as the process with the most of them makes."""
        own = self.micro_batches.count(data) if has_rows else 0
        more = int(max(self.ranks.group.numbers_of(own))) - own
        with self.parameters.passing():
            # First: the sums of gradients begin in the last of the own ones.
            for _ in range(more):
                hidden, _ = self.hidden_vectors(self.micro_batches.first(data)[0], training=True)
                (hidden.sum() * 0.0).backward()
            return self.backward_passes(data, trained) if has_rows else None

    def on_device(self, data):
        """A batch where the model is.

        Returns:
            `(x, y, sample_weight)` and `label_counts`, and whether this process has rows of it.
        """
        has_rows, is_of_all = True, not isinstance(data, RowsOfOneProcess)
        data = tuple(map(as_arrays, keras.utils.unpack_x_y_sample_weight(data)))
        if self.ranks is not None and is_of_all:
            data, has_rows = self.ranks.rows_of(data)
        x, y, sample_weight = data
        counts = label_counts(self.loss.labels(y), self.loss.ignore_index) if uses_gpu() else None
        x = self.model.with_host_facts(moved(x), x)
        return (x, moved(y), moved(sample_weight), counts), has_rows

    def backward_pass(self, trained, undo, data, is_last):
        """Forward and backward of one micro-batch: its gradient goes into `.grad`."""
        x, y, sample_weight, counts = data
        unit, gradients = self.accumulator.unit, None
        graph = self.pass_graph(x, sample_weight, trained)
        if graph is not None:
            passed, gradients = self.run_graph(graph, x, y, sample_weight)
        else:
            passed = self.forward(x, y, sample_weight, training=True, unit=unit, counts=counts)
            objective = self.optimizer.scale_loss(passed.objective)
            if not objective.requires_grad:
                raise ValueError(NO_GRADIENTS)
            if undo is None:
                with self.sums_begin(trained, is_last):
                    objective.backward()
            else:
                # All of the gradient or nothing: memory may run out in the middle of it.
                gradients = torch.autograd.grad(objective, trained.tensors, allow_unused=True)
        if gradients is not None:
            add_gradients(trained.tensors, gradients)
        if undo is not None:
            undo.refresh()
        self.accumulator.add(passed.tokens)
        return self.logs_of(passed, y, sample_weight)

    def pass_graph(self, x, sample_weight, trained) -> PassGraph | None:
        """The graph of all that is between a batch and its gradients, if there is one."""
        captured = self.captured
        if self.jit_compile is not True:
            # Where nothing is compiled, a run that continues another one on another day, whose
            # first batch has no graph yet, gets the same numbers to the last bit.
            return None
        # The first call of a shape tells whether there can be a graph.
        if captured is None or not captured.has_seen(x, training=True) or trained.are_regularized:
            return None
        if self.model.run_eagerly or self.why_logits(sample_weight) or trained.are_watched():
            return None
        if self.model.mixed is not None:
            return None
        if self.passes is None:
            self.passes = PassGraphs(self.model, self.loss, self.sums.top_k, trained, self.policy)
        return self.passes.graph_of(x)

    @torch.no_grad()
    def run_graph(self, graph, x, y, sample_weight):
        """Forward and backward by a graph: the `Pass`, and the gradients."""
        unit = self.accumulator.unit
        tokens = self.flat_tokens(y, sample_weight, graph.shape, None, graph.dtype, unit)
        scale = self.optimizer.scale_loss(torch.as_tensor(tokens.scale, dtype=tokens.weights.dtype))
        sums, nll, gradients = graph(x, tokens.labels, tokens.weights, scale)
        return self.counted(tokens, None, sums, nll, 0.0, sample_weight, unit), gradients

    def test_batch(self, data):
        """One batch of evaluation; returns the logs."""
        self.check_ranks()
        data, has_rows = self.on_device(data)
        if self.parameters is None:
            return self.forward_only(data, training=False) if has_rows else self.logs()
        with self.parameters.passing():
            if has_rows:
                return self.forward_only(data, training=False)
            if self.parameters.is_divided:
                with torch.no_grad():
                    self.hidden_vectors(data[0], training=False)
        return self.logs()

    def forward_only(self, data, training):
        """A batch on the device, for the logs alone."""
        x, y, sample_weight, counts = data
        self.look_at_layers(x)
        with torch.no_grad():
            passed = self.forward(x, y, sample_weight, training, counts=counts)
            logs = self.logs_of(passed, y, sample_weight)
        return self.logs() if logs is None else logs

    def logs_of(self, passed, y, sample_weight):
        """Brings the metrics that need logits up to date: the logs; None where none needs them."""
        if passed.y_pred is None:
            return None
        arguments = None, y, passed.y_pred, sample_weight
        if self.ranks is None:
            return self.model.compute_metrics(*arguments)
        # Of this process alone: another one may have no rows.
        with self.ranks.alone():
            self.model.compute_metrics(*arguments)
        return None

    def logs(self):
        """The metrics so far."""
        throttle = self._throttles[-1] if self._throttles else None
        return self.model.get_metrics_result() if throttle is None else throttle.logs(self.model)

    # Epochs

    def begin_fit(self, callbacks):
        """Drops what an interrupted `fit` may have left."""
        self.check_ranks()
        self._throttles = [self.throttle(callbacks, "train")]
        if self.parameters is not None:
            # Where an interrupted `fit` has left them divided.
            self.parameters.gather()
        self.meet()
        self.guard.begin_fit()
        self.accumulator.start(self.trained().every_tensor, 1.0)
        if self.parameters is not None and self.model.built:
            self.parameters.divide(self.model)

    def begin_epoch(self, batches_to_come: int | None):
        """Starts the epoch's sums."""
        self._has_looked = False
        self.norms = GradientNorms()
        self.policy.begin_epoch(batches_to_come)
        self._throttles[-1].begin_epoch()

    def end_epoch(self):
        """Updates from a short last window."""
        self.apply_update()

    def end_training(self):
        """All has been trained: each process has all weights again."""
        if self.parameters is not None:
            self.parameters.gather()

    def whole_weights(self):
        """Context manager in which each process has all weights."""
        if self.parameters is None:
            return super().whole_weights()
        return self.parameters.whole(self.model)

    def end_fit(self):
        """Ends what `begin_fit` began."""
        self._throttles = []
        self.policy.pause()

    def begin_test(self, callbacks):
        """An evaluation begins, perhaps inside a `fit`."""
        self._has_looked = False
        self._throttles.append(self.throttle(callbacks, "test"))
        self.policy.pause()

    def end_test(self):
        """It is over."""
        self._has_looked = False
        self._throttles.pop()
        self.policy.pause()

    @torch.no_grad()
    def apply_update(self):
        """Updates the weights from the window so far, and starts a new one."""
        if self.accumulator.batches == 0:
            return
        # Those of the last batch, though a callback may have frozen some since.
        trained = self._trained or self.trained()
        norm, scales = None, self.optimizer is not self._inner
        if self.ranks is not None:
            norm = self.ranks.meet_before_update(self.accumulator, self.guard, trained)
        gradients = self.accumulator.gradients(trained.tensors)
        known = [gradient for gradient in gradients if gradient is not None]
        if self.sharded is None:
            norm = global_norm(known) if known else None
        elif norm is not None:
            norm = norm / self.accumulator.divisor()
        if norm is not None and (scale := loss_scale(self.optimizer)) is not None:
            norm = norm / scale
        skip = self.guard.decide(norm, overflows=scales)
        if norm is not None:
            # Where a loss scale overflows, which its optimizer waits to know, there is no update.
            overflows = scales and not norm.isfinite()
            self.norms.add(norm, True if overflows else skip)
        if self.sharded is None:
            self.apply_unless(skip, norm, *self.with_gradients(gradients, trained.variables))
        else:
            self.update_own(skip, norm, gradients, trained)
        self.accumulator.start(trained.every_tensor, 1.0)

    def update_own(self, skip, norm, gradients, trained):
        """Updates the variables of this process, and gives all processes those of all."""
        if norm is None:
            raise ValueError(NO_GRADIENTS)
        gradients, variables = self.sharded.own(gradients, trained.variables, norm)
        if any(gradient is not None for gradient in gradients):
            self.apply_unless(skip, norm, *self.with_gradients(gradients, variables))
        else:
            self.sharded.count(skip)
        if skip is not True:
            divided = self.parameters is not None and self.parameters.is_divided
            self.sharded.send_values(trained, self.parameters.divided_tensors() if divided else ())

    def apply_unless(self, skip, norm, gradients, variables):
        """Hands the gradients to the optimizer, unless the update is skipped.

        Where the host does not know whether it is, on a GPU, our optimizers find out there. For any
        other one the host waits.
        """
        optimizer = self.optimizer
        is_ours = isinstance(optimizer, Optimizer)
        if isinstance(skip, torch.Tensor) and not (is_ours and optimizer.skips_on_device):
            skip = bool(skip)
        if skip is True:
            return
        if is_ours:
            optimizer.apply_unless(None if skip is False else skip, norm, gradients, variables)
        else:
            optimizer.apply(gradients, variables)

    def with_gradients(self, gradients, variables):
        """Gradients and variables; of a model that may leave some unused, those it has used."""
        if not self.model.may_leave_weights_unused or all(g is not None for g in gradients):
            return gradients, variables
        if not self.optimizer.built:
            self.optimizer.build(variables)
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        if not pairs:
            raise ValueError(NO_GRADIENTS)
        return zip(*pairs, strict=True)

    # Several processes

    def check_ranks(self):
        """Raises `RuntimeError` where the processes are not those that `compile` was called for."""
        check_one_device()
        if self.ranks is not None and sharded() != self.shard:
            raise RuntimeError(
                "keras_llm.distribute must be called before compile. Received: a call of "
                f"distribute(shard={sharded()!r}) after compile, which found {self.shard!r}"
            )
        if (size := world().size) != (1 if self.ranks is None else self.ranks.group.size):
            raise RuntimeError(
                "The processes must have met when compile is called: import keras_llm under "
                "torchrun, or call torch.distributed.init_process_group before compile. "
                f"Received: a group of {size} processes, made after compile"
            )

    def meet(self):
        """Gives all processes the weights of the first."""
        if self.sharded is not None:
            # Here, where all processes are: an optimizer that is whole is taken apart.
            self.sharded.owners(self.trained().variables)
        if self.ranks is not None:
            self.ranks.meet(self.model, self.optimizer)

    def throttle(self, callbacks, phase: str) -> LogThrottle:
        """When the logs of `fit` or `evaluate` are computed: a clock decides for one process."""
        return LogThrottle(callbacks, phase, None if self.ranks is None else EVERY)

    def build_optimizer(self):
        """Builds the optimizer, if it is not, with the variables whose state is kept here."""
        if self.sharded is not None:
            self.sharded.build(self.trained().variables)
        else:
            super().build_optimizer()

    def build_whole_optimizer(self):
        """Builds the optimizer with all variables, for values of all its state."""
        if self.sharded is not None:
            self.sharded.build_whole(self.trained().variables)
        else:
            super().build_whole_optimizer()

    def whole_state(self):
        """Context manager in which the first process has the optimizer's state of all."""
        return super().whole_state() if self.sharded is None else self.sharded.whole()

    def sums_begin(self, trained, is_last: bool):
        """Context manager for a backward pass, in which sums over processes may begin.

        Args:
            trained: The `TrainedVariables`.
            is_last: Whether it is the last pass of the batch.
        """
        if self.ranks is None:
            return contextlib.nullcontext()
        is_last = is_last and self.accumulator.is_last_batch()
        return self.ranks.sum_for(trained).during(is_last)

    @property
    def adds_gradients(self) -> bool:
        """Whether an update may have the gradients of several passes."""
        return self.ranks is not None or super().adds_gradients

    # Layers

    def look_at_layers(self, x):
        """Drops what was made from layers that have changed since.

        In the middle of an epoch only a callback can change one. Where none acts between two
        batches, the look, which takes a fiftieth of a very small model's step, is spared.
        """
        model = self.model
        throttle = self._throttles[-1] if self._throttles else None
        if self._has_looked and throttle is not None and not throttle.layers_may_change:
            return
        self._has_looked = True
        if not all(layer.built for layer in all_layers(model)[1:]):
            with torch.no_grad():
                model(x, training=False)
        if self._settings is None or not self._settings.unchanged():
            self._settings = LayerSettings(model)
            self._trained = self.captured = self.passes = None

    def trained(self) -> TrainedVariables:
        """The variables that are trainable now."""
        if self._trained is None or not self._trained.is_still_true():
            self._trained, self.passes = TrainedVariables(self.model), None
        return self._trained

    def hidden_vectors(self, x, training):
        """The backbone's hidden vectors, and what the layers add to the loss of every token."""
        if self.model.run_eagerly or self.parameters is not None:
            return super().hidden_vectors(x, training)
        if self.captured is None:
            self.captured = CapturedLayer(self.model.backbone, self.policy)
        hidden = self.captured(x, training)
        # A graph is of layers that add nothing. To ask all of them takes as long as a small graph.
        adds = self._trained is None or self._trained.are_regularized or not self.captured.replayed
        return hidden, self.model.penalty() if adds else 0.0

    def predict(self, x, training):
        """The model's logits, with the backbone as a graph where the head is all that follows."""
        if not self.model.call_ends_with_head():
            return super().predict(x, training)
        hidden, _ = self.hidden_vectors(x, training)
        return self.model.head(hidden)

    # What is not finite

    def epoch_sums(self) -> list:
        """The tensors of the epoch's sums, those of the logged loss first."""
        if self.sums.left or self.sums.left_weighted:
            return [variable.value for variable in self.model.metrics_variables]
        if self._sums is None:
            self._sums = [v.value for metric in self.sums.metrics for v in metric.variables]
        return self._sums

    def set_guard(self, settings: GuardSettings):
        """Sets which updates are skipped."""
        self.guard.settings = settings

    def look(self, wait: bool) -> SkippedUpdates | None:
        """What has been skipped; None where the host would have to wait and `wait` is false."""
        return self.guard.look(wait)

    def gradients_again(self, data, seen):
        """Forward and backward of a batch once more, layer by layer."""
        model, trained, parts = self.model, self.trained(), []
        unit = unit_of(self.note_shape(data[1]))

        def again(rows, is_last):
            x, y, sample_weight, counts = rows
            passed = self.forward(x, y, sample_weight, True, unit, counts)
            gradients = torch.autograd.grad(passed.objective, trained.tensors, allow_unused=True)
            parts.append((passed.objective.detach(), *gradients))

        changed = [v for v in trained.every if not v.trainable and len(v.shape) < 2]
        restore = Snapshot([*model.metrics_variables, *changed])
        devices = [tensor.device for tensor in trained.tensors[:1] if tensor.is_cuda]
        was_eager, model.run_eagerly = model.run_eagerly, True
        try:
            with torch.random.fork_rng(devices), layers_seen(model, seen):
                MicroBatches(self.micro_batches.size).run(data, again, None)
        finally:
            model.run_eagerly = was_eager
            restore()
        loss, *gradients = [
            None if values[0] is None else sum(values) for values in zip(*parts, strict=True)
        ]
        return loss, gradients

    # What others ask

    def metrics_of_all(self):
        """Context manager in which the metrics are those of all processes that train."""
        # The sum of the losses, with its tokens. Keras builds a model with tensors of no values.
        sums = self.sums.mean.variables[0].value
        if self.ranks is None or self.ranks.is_alone or sums.is_meta:
            return contextlib.nullcontext()
        # In an evaluation, NaN is what has been found.
        spoiled = self.guard.spoiled if len(self._throttles) < 2 else False
        return self.ranks.metrics_of_all(self.model.metrics_variables, sums, spoiled)

    def of_first(self, seconds: float) -> float:
        """What the clock of the first process showed."""
        return seconds if self.ranks is None else self.ranks.group.of_first([seconds])[0]

    def gradient_norm(self) -> float | None:
        """The mean global norm of this epoch's gradients before clipping; None before any."""
        return self.norms.mean()

    @property
    def reads_late(self) -> bool:
        """Whether `running_sums` are on their way from a GPU for a while."""
        return uses_gpu()

    def running_sums(self):
        """Copies what grows from an epoch's beginning; see `Step.running_sums`."""
        sums = [variable.value for variable in self.summed_variables()]
        if self.guard.spoiled is not False:
            # Nothing is left of the epoch yet.
            sums = [values.nan_to_num(0.0, 0.0, 0.0) for values in sums]
        if self.ranks is not None:
            sums = [values.clone() for values in sums]
            self.ranks.group.sum_(sums)
        learning_rate = self.optimizer.learning_rate
        return HostCopies([*sums, self.norms.total, self.norms.count, learning_rate]).read

    def describe(self) -> StepDescription:
        """What `explain` shows of it."""
        if self.model.run_eagerly:
            layers, why_layers = "eager", "compile was given run_eagerly=True"
        elif self.parameters is not None:
            layers, why_layers = "eager", "each gathers its parameters: distribute(shard=...)"
        elif why := self.why_no_graph():
            layers, why_layers = "eager", f"no graph: {why}"
        else:
            layers, why_layers = "graph", ""
        guard = self.guard.settings, int(self.guard.total)
        described = self.description(layers, why_layers, self.policy.describe(), *guard)
        return described._replace(processes=self.ranks and self.processes())

    def why_no_graph(self) -> str:
        """Why layers run as they are; empty where they do not, or it is not known yet."""
        if self.captured is not None:
            return self.captured.reason
        known = getattr(getattr(self.model, "backbone", None), "why_no_graph", None)
        return known() if known else ""

    def processes(self) -> Processes:
        """What `explain` shows of the processes that train."""
        count = self.ranks.group.size
        if not self.model.built:
            return Processes(count, self.shard, None, None)
        variables = self.model.trainable_variables
        total = sum(variable.value.nbytes for variable in variables)
        owned = [total] * count
        if self.sharded is not None:
            owned = self.sharded.bytes_owned(variables)
        tensors = [variable.value for variable in variables]
        # A sum for all is as much as a sum at one process and a copy from there.
        sent = bytes_sent(tensors, count)
        if self.sharded is not None:
            # Copies have the dtype of values. Those of divided parameters come twice in a pass.
            copies = 1 if self.parameters is None else 2
            sent = sent // 2 + copies * (count - 1) * total // count
        return Processes(count, self.shard, owned, sent)

    def state_dict(self) -> dict:
        """The window, the epoch's sums, what was decided about compiling."""
        tensors = self.trained().every_tensor
        state = {
            "window": self.accumulator.state_dict(tensors),
            "norms": (self.norms.total, self.norms.count),
            "guard": self.guard.state_dict(),
            "metrics": [variable.value.clone() for variable in self.model.metrics_variables],
            "micro_batch_size": self.micro_batches.size,
            "tokens_per_update": self.tokens_per_update,
            "compiling": self.policy.state_dict(),
        }
        if self.ranks is None:
            return state
        return self.ranks.whole_state(state, tensors, self.model.variables)

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` returned, on whichever device."""
        device = self.trained().every_tensor[0].device
        state = keras.tree.map_structure(
            lambda part: part.to(device) if torch.is_tensor(part) else part, state
        )
        if self.ranks is not None:
            state = self.ranks.own_state(state, self.model.variables)
        self.accumulator.load_state_dict(state["window"], self.trained().every_tensor)
        self.norms.total, self.norms.count = state["norms"]
        self.guard.load_state_dict(state["guard"])
        for variable, value in zip(self.model.metrics_variables, state["metrics"], strict=True):
            variable.value.copy_(value)
        self.micro_batches.size = state["micro_batch_size"]
        self.tokens_per_update = state["tokens_per_update"]
        self.policy.load_state_dict(state["compiling"])


def moved(part):
    """A part of a batch as tensors where the model is."""
    is_nested = isinstance(part, dict | list | tuple)
    return keras.tree.map_structure(copied, part) if is_nested else copied(part)


def check_one_device():
    """Raises `RuntimeError` where Keras is told to spread a model over devices."""
    if keras.distribution.distribution() is not None:
        raise RuntimeError(
            "On PyTorch each device has a process of its own: run the script by torchrun "
            "--nproc-per-node=N, without keras.distribution.set_distribution. "
            f"Received: {keras.distribution.distribution()}"
        )
