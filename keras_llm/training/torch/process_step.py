"""The training step on PyTorch in one of several processes."""

import torch

from keras_llm.data.process_rows import RowsOfOneProcess
from keras_llm.distribution import sharded, world
from keras_llm.training.step_facts import Processes, StepDescription
from keras_llm.training.torch.device_checks import check_one_device, check_processes
from keras_llm.training.torch.gradient_sum import bytes_sent
from keras_llm.training.torch.log_throttle import LogThrottle
from keras_llm.training.torch.parameter_blocks import bytes_gathered
from keras_llm.training.torch.passes import NO_GRADIENTS
from keras_llm.training.torch.ranks import EVERY, Ranks
from keras_llm.training.torch.sharded_optimizer import ShardedOptimizer
from keras_llm.training.torch.sharded_parameters import ShardedParameters
from keras_llm.training.torch.step import TorchStep


def make_step(*arguments) -> TorchStep:
    """The step of a process that trains alone, or of one of several; arguments as of `Step`."""
    check_one_device()
    return (TorchStep if world().size == 1 else ProcessStep)(*arguments)


class ProcessStep(TorchStep):
    """`TorchStep` with this process's rows of each batch, and sums over all processes.

    All processes call the same methods in the same order, one that has no rows of a batch included.

    Attributes:
        ranks: What the processes do together.
        sharded: The `ShardedOptimizer`; None where each process updates all variables.
        parameters: The `ShardedParameters`; None where each process keeps all weights.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ranks = Ranks(world())
        self.shard, self.sharded, self.parameters = sharded(), None, None
        if self.shard is not None:
            self.sharded = self.ranks.sharded = ShardedOptimizer(self.ranks.group, self.optimizer)
            self.divided = self.shard
        if self.shard == "parameters":
            self.parameters = ShardedParameters(self.sharded, self)
        # Whether this process has rows of the batch that runs.
        self._has_rows = True

    def check_devices(self):
        """Raises `RuntimeError` where the processes are not those that `compile` was called for."""
        if sharded() != self.shard:
            raise RuntimeError(
                "keras_llm.distribute must be called before compile. Received: a call of "
                f"distribute(shard={sharded()!r}) after compile, which found {self.shard!r}"
            )
        check_processes(self.ranks.group.size)

    # Batches

    def own_rows(self, data):
        """What this process trains of a batch; where that is nothing, a row to look at."""
        rows, self._has_rows = super().own_rows(data), True
        if not isinstance(data, RowsOfOneProcess):
            rows, self._has_rows = self.ranks.rows_of(rows)
        return rows

    def prepare(self, x):
        """Looks at the layers; at first, all processes take the weights of the first."""
        trained = super().prepare(x)
        if not self.ranks.has_met:
            self.meet()
        return trained

    def unit(self, trained, positions):
        """The number that sums are divided by, the same in all processes."""
        return self.ranks.begin_window(trained, super().unit(trained, positions))

    def backward_passes(self, data, trained):
        """Forward and backward of this process's rows, in micro-batches."""
        if self.parameters is None:
            return self.own_passes(data, trained)
        own = self.micro_batches.count(data) if self._has_rows else 0
        more = int(max(self.ranks.group.numbers_of(own))) - own
        with self.parameters.passing():
            # As many as the process with the most of them makes. First these: the sums of gradients
            # begin in the last of the own ones.
            for _ in range(more):
                hidden, _ = self.hidden_vectors(self.micro_batches.first(data)[0], training=True)
                (hidden.sum() * 0.0).backward()
            return self.own_passes(data, trained)

    def own_passes(self, data, trained):
        """The passes of this process's rows, if it has any, with its own random numbers."""
        if not self._has_rows:
            return None
        with self.ranks.own_random_numbers():
            return super().backward_passes(data, trained)

    def backward(self, objective, trained, is_last):
        """The backward pass, in which sums over processes may begin."""
        is_last = is_last and self.accumulator.is_last_batch()
        with self.ranks.sum_for(trained).during(is_last):
            super().backward(objective, trained, is_last)

    def forward_only(self, data, training):
        """A batch on the device, for the logs alone."""
        if self.parameters is None:
            return super().forward_only(data, training) if self._has_rows else self.logs()
        with self.parameters.passing():
            if self._has_rows:
                return super().forward_only(data, training)
            # The others gather parameters in their passes, in which every process takes part.
            if self.parameters.is_divided:
                with torch.no_grad():
                    self.hidden_vectors(data[0], training=False)
        return self.logs()

    def logs_of(self, passed, y, sample_weight):
        """Brings the metrics that need logits up to date; the logs are computed together."""
        # Of this process alone: another one may have no rows.
        with self.ranks.alone():
            super().logs_of(passed, y, sample_weight)
        return None

    # Epochs

    def begin_fit(self, callbacks):
        """Drops what an interrupted `fit` may have left, and begins with the same weights."""
        self.check_devices()
        if self.parameters is not None:
            # Where an interrupted `fit` has left them divided.
            self.parameters.gather()
        self.meet()
        super().begin_fit(callbacks)
        if self.parameters is not None and self.model.built:
            self.parameters.divide(self.model)

    def throttle(self, callbacks, phase):
        """When the logs are computed: after the same steps in all processes."""
        return LogThrottle(callbacks, phase, EVERY)

    def end_training(self):
        """All has been trained: each process has all weights again."""
        if self.parameters is not None:
            self.parameters.gather()

    def meet(self):
        """Gives all processes the weights of the first."""
        if self.sharded is not None:
            # Here, where all processes are: an optimizer that is whole is taken apart.
            self.sharded.owners(self.graphs.trained().variables)
        self.ranks.meet(self.model, self.optimizer)

    # Updates

    @property
    def adds_gradients(self) -> bool:
        """An update has the gradients of all processes."""
        return True

    def whole_gradients(self, trained):
        """The gradients over all processes, perhaps of this one's variables, and their norm."""
        norm = self.ranks.meet_before_update(self.accumulator, self.guard, trained)
        if self.sharded is None:
            return super().whole_gradients(trained)
        gradients = self.accumulator.gradients(trained.tensors)
        return gradients, None if norm is None else norm / self.accumulator.divisor()

    def update(self, skip, norm, gradients, trained):
        """Updates all variables, or those of this process, whose values all then get."""
        if self.sharded is None:
            return super().update(skip, norm, gradients, trained)
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

    def build_optimizer(self):
        """Builds the optimizer, if it is not, with the variables whose state is kept here."""
        if self.sharded is None:
            super().build_optimizer()
        else:
            self.sharded.build(self.graphs.trained().variables)

    def build_whole_optimizer(self):
        """Builds the optimizer with all variables, for values of all its state."""
        if self.sharded is None:
            super().build_whole_optimizer()
        else:
            self.sharded.build_whole(self.graphs.trained().variables)

    # What is whole

    def whole_weights(self):
        """Context manager in which each process has all weights."""
        if self.parameters is None:
            return super().whole_weights()
        return self.parameters.whole(self.model)

    def whole_state(self):
        """Context manager in which the first process has the optimizer's state of all."""
        return super().whole_state() if self.sharded is None else self.sharded.whole()

    def metrics_of_all(self):
        """Context manager in which the metrics are those of all processes that train."""
        # The sum of the losses, with its tokens. Keras builds a model with tensors of no values.
        sums = self.sums.mean.variables[0].value
        if self.ranks.is_alone or sums.is_meta:
            return super().metrics_of_all()
        # In an evaluation, NaN is what has been found.
        spoiled = self.guard.spoiled if len(self._throttles) < 2 else False
        return self.ranks.metrics_of_all(self.model.metrics_variables, sums, spoiled)

    def grown_sums(self):
        """The sums of the metrics over all processes, from the epoch's beginning."""
        sums = [values.clone() for values in super().grown_sums()]
        self.ranks.group.sum_(sums)
        return sums

    def of_first(self, seconds):
        """What the clock of the first process showed."""
        return self.ranks.group.of_first([seconds])[0]

    def state_dict(self):
        """The state of all processes together."""
        tensors = self.graphs.trained().every_tensor
        return self.ranks.whole_state(super().state_dict(), tensors, self.model.variables)

    def load_state_dict(self, state):
        """Takes this process's part of what `state_dict` returned, for any number of them."""
        super().load_state_dict(self.ranks.own_state(state, self.model.variables))

    # What others ask

    def why_eager(self):
        """Why the layers are called one by one; empty where they may be a graph."""
        gathers = "each gathers its parameters: distribute(shard=...)"
        return super().why_eager() or (gathers if self.parameters is not None else "")

    def describe(self) -> StepDescription:
        """What `explain` shows of it."""
        return super().describe()._replace(processes=self.processes())

    def processes(self) -> Processes:
        """What `explain` shows of the processes that train."""
        count = self.ranks.group.size
        if not self.model.built:
            return Processes(count, self.shard, None, None)
        variables = self.model.trainable_variables
        tensors = [variable.value for variable in variables]
        copied = sum(tensor.nbytes for tensor in tensors)
        owned = [copied] * count
        if self.sharded is not None:
            owned = self.sharded.bytes_owned(variables)
        if self.parameters is not None:
            copied = bytes_gathered(self.model, tensors)
        # A sum for all is as much as a sum at one process and a copy from there.
        sent = bytes_sent(tensors, count)
        if self.sharded is not None:
            sent = sent // 2 + (count - 1) * copied // count
        return Processes(count, self.shard, owned, sent)
