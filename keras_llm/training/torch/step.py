"""The training step on PyTorch: forward, loss, backward, update."""

import warnings

import keras
import torch

from keras_llm.backend.torch.gradient_clipping import global_norm
from keras_llm.counted_tokens import skipped_weights
from keras_llm.optimizers.optimizer import Optimizer
from keras_llm.training.forward_pass import unit_of
from keras_llm.training.step_facts import GuardSettings, SkippedUpdates, StepDescription
from keras_llm.training.torch.device_checks import check_processes
from keras_llm.training.torch.gradient_accumulator import GradientNorms, loss_scale
from keras_llm.training.torch.host_batches import on_host, uses_gpu
from keras_llm.training.torch.host_copies import HostCopies
from keras_llm.training.torch.log_throttle import LogThrottle
from keras_llm.training.torch.passes import NO_GRADIENTS, TorchPasses
from keras_llm.training.torch.update_guard import UpdateGuard


class TorchStep(TorchPasses):
    """`Step`, with gradients in `.grad` and the backbone as captured graphs.

    This is the step of a process that trains alone; `ProcessStep` is that of one of several.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.norms, self.guard = GradientNorms(), UpdateGuard()
        # The tensors of the epoch's sums.
        self._sums = None
        # Whether the layers have been looked at since somebody could change them.
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
        self.check_devices()
        data = self.on_device(data)
        x, y, *_ = data
        trained = self.prepare(x)
        positions = self.note_shape(y)
        if not trained.variables:
            text = f"The model does not have any trainable weights. {self.model.how_to_train()}"
            warnings.warn(text.strip(), stacklevel=2)
            return self.forward_only(data, training=True)
        if self.accumulator.batches == 0:
            self.accumulator.start(trained.every_tensor, self.unit(trained, positions))
        guard = self.guard if self.guard.settings.skip else None
        if guard is not None:
            guard.begin_batch(self.epoch_sums(), trained.state)
        if self.held is not None:
            self.held.append(data)
        logs = self.backward_passes(data, trained)
        trained.forget_constants()
        if guard is not None and guard.end_batch():
            logs = None
        if self.accumulator.is_full_with_this_batch():
            self.apply_update()
        return self.logs() if logs is None else logs

    # Some of a loss's numbers are found by its derivatives, which inference mode rules out.
    @torch.inference_mode(mode=False)
    def test_batch(self, data):
        """One batch of evaluation; returns the logs."""
        self.check_devices()
        data = self.on_device(data)
        self.look_at_layers(data[0])
        return self.forward_only(data, training=False)

    def check_devices(self):
        """Raises `RuntimeError` where more devices are to train than `compile` was called for."""
        check_processes(1)

    def prepare(self, x):
        """Looks at the layers before a batch is trained, and returns the `TrainedVariables`."""
        self.look_at_layers(x)
        return self.graphs.trained()

    def look_at_layers(self, x):
        """Drops what was made from layers that have changed since.

        In the middle of an epoch only a callback can change one. Where none acts between two
        batches, the look, which takes a fiftieth of a very small model's step, is spared.
        """
        throttle = self._throttles[-1] if self._throttles else None
        if not self._has_looked or throttle is None or throttle.layers_may_change:
            self._has_looked = True
            self.graphs.look(x)

    def unit(self, trained, positions: int) -> float:
        """The number that the sums of a window are divided by, for a batch of so many positions."""
        return unit_of(positions)

    def logs(self):
        """The metrics so far."""
        throttle = self._throttles[-1] if self._throttles else None
        return self.model.get_metrics_result() if throttle is None else throttle.logs(self.model)

    # Epochs

    def begin_fit(self, callbacks):
        """Drops what an interrupted `fit` may have left."""
        self.check_devices()
        self._throttles = [self.throttle(callbacks, "train")]
        self.guard.begin_fit()
        self.accumulator.start(self.graphs.trained().every_tensor, 1.0)

    def throttle(self, callbacks, phase: str) -> LogThrottle:
        """When the logs of `fit` or `evaluate` are computed."""
        return LogThrottle(callbacks, phase)

    def begin_epoch(self, batches_to_come: int | None):
        """Starts the epoch's sums."""
        self._has_looked = False
        self.norms = GradientNorms()
        self.policy.begin_epoch(batches_to_come)
        self._throttles[-1].begin_epoch()

    def end_epoch(self):
        """Updates from a short last window."""
        self.apply_update()

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
        trained = self.graphs.last_trained()
        gradients, norm = self.whole_gradients(trained)
        scales = self.optimizer is not self._inner
        if norm is not None and (scale := loss_scale(self.optimizer)) is not None:
            norm = norm / scale
        skip = self.guard.decide(norm, overflows=scales)
        if norm is not None:
            # Where a loss scale overflows, which its optimizer waits to know, there is no update.
            overflows = scales and not norm.isfinite()
            self.norms.add(norm, True if overflows else skip)
        self.update(skip, norm, gradients, trained)
        self.accumulator.start(trained.every_tensor, 1.0)

    def whole_gradients(self, trained):
        """The gradients of an update, and their global norm; None where there are none."""
        gradients = self.accumulator.gradients(trained.tensors)
        known = [gradient for gradient in gradients if gradient is not None]
        return gradients, global_norm(known) if known else None

    def update(self, skip, norm, gradients, trained):
        """Updates the variables."""
        self.apply_unless(skip, norm, *self.with_gradients(gradients, trained.variables))

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

    # What others ask

    def gradient_norm(self) -> float | None:
        """The mean global norm of this epoch's gradients before clipping; None before any."""
        return self.norms.mean()

    @property
    def reads_late(self) -> bool:
        """Whether `running_sums` are on their way from a GPU for a while."""
        return uses_gpu()

    def running_sums(self):
        """Copies what grows from an epoch's beginning; see `Step.running_sums`."""
        learning_rate = self.optimizer.learning_rate
        numbers = *self.grown_sums(), self.norms.total, self.norms.count, learning_rate
        return HostCopies(numbers).read

    def grown_sums(self) -> list:
        """The sums of the metrics, from the epoch's beginning."""
        sums = [variable.value for variable in self.sums.summed_variables()]
        if self.guard.spoiled is not False:
            # Nothing is left of the epoch yet.
            sums = [values.nan_to_num(0.0, 0.0, 0.0) for values in sums]
        return sums

    def describe(self) -> StepDescription:
        """What `explain` shows of it."""
        why_layers = self.why_eager() or self.graphs.why_none()
        guard = self.guard.settings, int(self.guard.total)
        layers = "eager" if why_layers else "graph"
        return self.description(layers, why_layers, self.policy.describe(), *guard)

    def state_dict(self) -> dict:
        """The window, the epoch's sums, what was decided about compiling."""
        tensors = self.graphs.trained().every_tensor
        return {
            "window": self.accumulator.state_dict(tensors),
            "norms": (self.norms.total, self.norms.count),
            "guard": self.guard.state_dict(),
            "metrics": [variable.value.clone() for variable in self.model.metrics_variables],
            "micro_batch_size": self.micro_batches.size,
            "tokens_per_update": self.tokens_per_update,
            "compiling": self.policy.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` returned, on whichever device."""
        tensors = self.graphs.trained().every_tensor
        device = tensors[0].device
        state = keras.tree.map_structure(
            lambda part: part.to(device) if torch.is_tensor(part) else part, state
        )
        self.accumulator.load_state_dict(state["window"], tensors)
        self.norms.total, self.norms.count = state["norms"]
        self.guard.load_state_dict(state["guard"])
        for variable, value in zip(self.model.metrics_variables, state["metrics"], strict=True):
            variable.value.copy_(value)
        self.micro_batches.size = state["micro_batch_size"]
        self.tokens_per_update = state["tokens_per_update"]
        self.policy.load_state_dict(state["compiling"])
