"""The two parts of a transformers model as Keras layers: what is before the head, and the head."""

import contextlib

import keras
import torch
from keras import ops

from keras_llm.backend.head_matrix import soft_capped
from keras_llm.backend.ids import check_ids
from keras_llm.models.torch.parameter_variable import ParameterVariable


class OfParameters(keras.layers.Layer):
    """Base class: a layer whose variables are parameters of a PyTorch module.

    `trainable = False` freezes all of them, also those that were frozen when they were wrapped and
    are not now; `True` gives back what it took, so that the base of adapters stays frozen.
    """

    def track(self, parameters: dict):
        """Makes variables of parameters, by name."""
        self.taken = set()
        for name, parameter in parameters.items():
            if parameter.is_floating_point():
                self._track_variable(ParameterVariable(parameter, name))

    @keras.layers.Layer.trainable.setter
    def trainable(self, value):
        """Whether parameters may be trained; which of them are, their `requires_grad` says."""
        trained = {v.path for v in self.variables if v.trainable}
        keras.layers.Layer.trainable.fset(self, value)
        if value:
            trained, self.taken = trained | self.taken, set()
        else:
            trained, self.taken = set(), self.taken | trained
        for variable in self.variables:
            variable.trainable = variable.path in trained


class OutsideBackbone(OfParameters):
    """A transformers model up to its head: a dictionary of its inputs to hidden vectors.

    Its variables are the model's parameters, each once, by their own names.

    Args:
        model: The transformers model.
        facts: Its `OutsideFacts`.
    """

    def __init__(self, model, facts, **kwargs):
        super().__init__(**kwargs)
        # A module as an attribute would be wrapped, tracked and saved by Keras.
        vars(self)["model"] = model
        vars(self)["hidden_vectors"] = facts.hidden_vectors
        vars(self)["vocab_sizes"] = facts.vocab_sizes
        self.factor = 1.0 if facts.hidden_vectors.scales else facts.rule.scale
        # What predicts the next token: for the checks of a batch.
        self.is_causal = not model.config.is_encoder_decoder
        self.is_compiled, self.compiled = False, {}
        own = dict(model.named_parameters())
        self.parameters_then = {id(parameter) for parameter in own.values()}
        self.track({name: own[name] for name in own if name not in facts.head_parameters})
        self.built = True

    def run_compiled(self, is_wanted: bool) -> None:
        """Sets whether `torch.compile` runs the model of transformers."""
        self.is_compiled = is_wanted

    def why_no_graph(self) -> str:
        """Why its operations are not captured: their Python code is thin, and a graph would lose
        gradient checkpointing and the causal mask's fast kernel."""
        if self.is_compiled:
            return "torch.compile runs the model of transformers"
        return "a model of transformers runs as it is"

    def call(self, inputs, training=None):
        """Hidden vectors `[batch, length, d_model]`; NaN in rows of which only the device has ids
        outside of the vocabulary."""
        # Not given back afterwards: checkpointing computes again in the backward pass.
        self.set_mode(bool(training))
        inputs, outside = self.inside(inputs)
        with self.in_mixed_precision():
            hidden, penalty = self.hidden_vectors(inputs, self.in_use)
        if self.factor != 1.0:
            hidden = hidden * self.factor
        self.add_penalty(penalty)
        hidden = with_nan(hidden, outside)
        return ops.cast(hidden, self.compute_dtype) if self.is_mixed() else hidden

    def logits(self, inputs, training=None):
        """The logits of the whole model."""
        self.set_mode(bool(training))
        inputs, outside = self.inside(inputs)
        with self.in_mixed_precision():
            outputs = self.in_use(self.model)(**inputs, use_cache=False)
        self.add_penalty(self.hidden_vectors.penalty_of(outputs))
        return with_nan(outputs.logits, outside)

    def inside(self, inputs: dict):
        """The inputs with ids of the vocabulary only, and which rows had others: None if none had.

        Ids on a GPU cannot be looked at without waiting for it, and one outside of the vocabulary
        would stop it.
        """
        outside = None
        for name, vocab_size in self.vocab_sizes.items():
            if name in inputs and not check_ids(inputs[name], vocab_size, name):
                wrong = (inputs[name] < 0) | (inputs[name] >= vocab_size)
                inputs = {**inputs, name: inputs[name].masked_fill(wrong, 0)}
                rows = wrong.any(dim=-1)
                outside = rows if outside is None else outside | rows
        return inputs, outside

    def check_parameters(self):
        """Raises `RuntimeError` where the model has other parameters than when it was wrapped."""
        others = [
            name
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in self.parameters_then
        ]
        if others:
            raise RuntimeError(
                "Parameters of the model were replaced after models.from_transformers: adapters, "
                "resize_token_embeddings and merge_and_unload come before it. Wrap the model "
                f"again. Received: {len(others)} new, such as {others[0]!r}"
            )

    def add_penalty(self, penalty):
        """Adds what the model adds to its loss, if anything."""
        if not isinstance(penalty, float):
            self.add_loss(penalty)

    def in_use(self, module):
        """A part of the model, or what `torch.compile` made of it."""
        if not self.is_compiled:
            return module
        if module not in self.compiled:
            self.compiled[module] = torch.compile(module)
        return self.compiled[module]

    def set_mode(self, training: bool):
        """Puts all of the model into training or evaluation mode."""
        if any(part.training != training for part in self.model.modules()):
            self.model.train(training)

    def is_mixed(self) -> bool:
        """Whether products are to have another dtype than the weights."""
        return self.compute_dtype != self.variable_dtype

    def in_mixed_precision(self):
        """PyTorch's context manager for mixed precision: its modules know no policy."""
        device = next(self.model.parameters()).device.type
        dtype = getattr(torch, self.compute_dtype)
        return torch.autocast(device, dtype) if self.is_mixed() else contextlib.nullcontext()

    def compute_output_spec(self, inputs, training=None):
        """Unknown without a batch: the widths of transformers' models have many names."""
        raise NotImplementedError("a model of transformers has no symbolic outputs")

    def save_own_variables(self, store):
        """All parameters and buffers, by the module's own names, each tensor once."""
        for name, tensor in unique_tensors(self.model).items():
            store[name] = ops.convert_to_numpy(tensor)

    def load_own_variables(self, store):
        """Takes what `save_own_variables` saved."""
        with torch.no_grad():
            for name, tensor in unique_tensors(self.model).items():
                tensor.copy_(ops.convert_to_tensor(store[name]))


class OutsideHead(OfParameters):
    """The head of a transformers model: its logits' kernel and bias, where there are such.

    Args:
        facts: The model's `OutsideFacts`.
    """

    def __init__(self, facts, **kwargs):
        super().__init__(**kwargs)
        vars(self)["linear"], vars(self)["rule"] = facts.head, facts.rule
        self.vocab_size = facts.head.weight.shape[0]
        self.track(facts.head_parameters)
        self.built = True

    @property
    def kernel(self):
        """`[d_model, vocab]`."""
        return self.linear.weight.T

    @property
    def bias(self):
        """`[vocab]`, or None: the head's own, scaled as its product is, and the constant."""
        own, rule = self.linear.bias, self.rule
        if own is not None and rule.scale != 1.0:
            own = own * rule.scale
        if rule.bias is None:
            return own
        return rule.bias if own is None else own + rule.bias

    @property
    def soft_cap(self):
        """A number, or None."""
        return self.rule.soft_cap

    def call(self, hidden):
        """The logits of hidden vectors."""
        logits = hidden @ self.kernel.to(hidden.dtype)
        logits = logits if self.bias is None else logits + self.bias
        return soft_capped(logits, self.soft_cap)

    def save_own_variables(self, store):
        """Nothing: the backbone saves the whole module."""

    def load_own_variables(self, store):
        """Nothing."""


def with_nan(vectors, rows):
    """Vectors `[batch, length, size]`, NaN where `rows` `[batch]` are true; None is no row."""
    if rows is None:
        return vectors
    return vectors.masked_fill(rows[:, None, None], torch.nan)


def unique_tensors(module) -> dict:
    """The parameters and buffers of a module by name, each once."""
    tensors = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensors[name].detach() for name in tensors if name in first.values()}
