"""From a batch to the gradients in `.grad`: the passes of the training step on PyTorch."""

import keras
import torch

from keras_llm.training.arrays import as_arrays
from keras_llm.training.forward_pass import unit_of
from keras_llm.training.step import Step
from keras_llm.training.torch.compile_policy import CompilePolicy
from keras_llm.training.torch.gradient_accumulator import GradientAccumulator, add_gradients
from keras_llm.training.torch.graphs import Graphs
from keras_llm.training.torch.host_batches import copied, label_counts, uses_gpu
from keras_llm.training.torch.micro_batches import MicroBatches, Snapshot
from keras_llm.training.torch.pass_graph import PassGraph
from keras_llm.training.torch.seen_layers import layers_seen

# What Keras says where it is handed none.
NO_GRADIENTS = "No gradients provided for any variable."


class TorchPasses(Step):
    """The part of `TorchStep` that knows batches and passes, and not what is done with them.

    Attributes:
        accumulator: The `GradientAccumulator`.
        micro_batches: The `MicroBatches`.
        policy: The `CompilePolicy`.
        graphs: The `Graphs` of the model.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.accumulator = GradientAccumulator(self.accumulation, self.sums_gradients)
        self.micro_batches = MicroBatches(self.micro_batch_size)
        self.policy = CompilePolicy(self.jit_compile)
        self.graphs = Graphs(self.model, self.sums, self.policy)

    def on_device(self, data):
        """A batch where the model is: `(x, y, sample_weight, label_counts)`."""
        x, y, sample_weight = self.own_rows(data)
        counts = label_counts(self.loss.labels(y), self.loss.ignore_index) if uses_gpu() else None
        x = self.model.with_host_facts(moved(x), x)
        return x, moved(y), moved(sample_weight), counts

    def own_rows(self, data):
        """What this process trains of a batch: `(x, y, sample_weight)`."""
        return tuple(map(as_arrays, keras.utils.unpack_x_y_sample_weight(data)))

    def backward_passes(self, data, trained):
        """Forward and backward of a batch, in micro-batches; returns logs as `logs_of`."""
        undo = None
        if self.micro_batch_size == "auto":
            undo = Snapshot([*self.model.metrics_variables, *self.model.non_trainable_variables])

        def run(rows, is_last):
            return self.backward_pass(trained, undo, rows, is_last)

        return self.micro_batches.run(data, run, undo)

    def backward_pass(self, trained, undo, data, is_last):
        """Forward and backward of one micro-batch: its gradient goes into `.grad`."""
        x, y, sample_weight, counts = data
        unit, gradients = self.accumulator.unit, None
        graph = self.pass_graph(x, sample_weight)
        if graph is not None:
            passed, gradients = self.run_graph(graph, x, y, sample_weight)
        else:
            passed = self.forward(x, y, sample_weight, training=True, unit=unit, counts=counts)
            objective = self.optimizer.scale_loss(passed.objective)
            if not objective.requires_grad:
                raise ValueError(NO_GRADIENTS)
            if undo is None:
                self.backward(objective, trained, is_last)
            else:
                # All of the gradient or nothing: memory may run out in the middle of it.
                gradients = torch.autograd.grad(objective, trained.tensors, allow_unused=True)
        if gradients is not None:
            add_gradients(trained.tensors, gradients)
        if undo is not None:
            undo.refresh()
        self.accumulator.add(passed.tokens)
        return self.logs_of(passed, y, sample_weight)

    def backward(self, objective, trained, is_last: bool):
        """The backward pass; `is_last` is whether it is the last one of the batch."""
        objective.backward()

    def pass_graph(self, x, sample_weight) -> PassGraph | None:
        """The graph of all that is between a batch and its gradients, if there is one."""
        # Where nothing is compiled, a run that continues another one on another day, whose first
        # batch has no graph yet, gets the same numbers to the last bit.
        if self.jit_compile is not True or self.why_eager() or self.why_logits(sample_weight):
            return None
        return self.graphs.whole_pass(x)

    @torch.no_grad()
    def run_graph(self, graph, x, y, sample_weight):
        """Forward and backward by a graph: the `Pass`, and the gradients."""
        unit = self.accumulator.unit
        tokens = self.flat_tokens(y, sample_weight, graph.shape, None, graph.dtype, unit)
        scale = self.optimizer.scale_loss(torch.as_tensor(tokens.scale, dtype=tokens.weights.dtype))
        sums, nll, gradients = graph(x, tokens.labels, tokens.weights, scale)
        return self.counted(tokens, None, sums, nll, 0.0, sample_weight, unit), gradients

    def forward_only(self, data, training):
        """A batch on the device, for the logs alone."""
        x, y, sample_weight, counts = data
        with torch.no_grad():
            passed = self.forward(x, y, sample_weight, training, counts=counts)
            logs = self.logs_of(passed, y, sample_weight)
        return self.logs() if logs is None else logs

    def logs_of(self, passed, y, sample_weight):
        """Brings the metrics that need logits up to date: the logs; None where none needs them."""
        if passed.y_pred is None:
            return None
        return self.model.compute_metrics(None, y, passed.y_pred, sample_weight)

    def gradients_again(self, data, seen):
        """Forward and backward of a batch once more, layer by layer."""
        model, trained, parts = self.model, self.graphs.trained(), []
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

    def why_eager(self) -> str:
        """Why the layers are called one by one; empty where they may be a graph."""
        return "compile was given run_eagerly=True" if self.model.run_eagerly else ""

    def hidden_vectors(self, x, training):
        """The backbone's hidden vectors, and what the layers add to the loss of every token."""
        if self.why_eager():
            return super().hidden_vectors(x, training)
        return self.graphs.hidden_vectors(x, training)

    def predict(self, x, training):
        """The model's logits, with the backbone as a graph where the head is all that follows."""
        if not self.model.call_ends_with_head():
            return super().predict(x, training)
        hidden, _ = self.hidden_vectors(x, training)
        return self.model.head(hidden)


def moved(part):
    """A part of a batch as tensors where the model is."""
    is_nested = isinstance(part, dict | list | tuple)
    return keras.tree.map_structure(copied, part) if is_nested else copied(part)
