"""Parameters whose values a process has only while it computes with them."""

import collections

import keras
import torch

from keras_llm.backend.keras_private import all_layers, is_cast_for
from keras_llm.distribution.torch.process_group import scatter
from keras_llm.training.torch.gradient_sum import buckets_of

# Private in PyTorch, and what its own sharding of parameters uses: values that are what they were
# are no change of a tensor that the backward pass has kept.
unchanged = getattr(torch.autograd, "_unsafe_preserve_version_counter", None)


class Block:
    """Parameters that come and go together.

    Their tensors stay the same objects, so that a Keras variable, a PyTorch module, the graph of a
    backward pass and an optimizer go on seeing them; only their memory is given back. PyTorch would
    read from where there is none: so between passes, when somebody else may look, such a tensor has
    NaN everywhere, and cannot be written to.

    Args:
        group: The `ProcessGroup`.
        channel: Its channel for values, in which nothing else is sent.
        tensors: The parameters.
        owners: The process that has the values of each.
        dtypes: What is sent of each to compute with.
    """

    def __init__(self, group, channel, tensors, owners, dtypes):
        self.group, self.channel = group, channel
        kinds = list(zip(owners, dtypes, strict=True))
        self.buckets = [(*kind, bucket) for kind, bucket in buckets_of(tensors, kinds)]
        self.is_whole, self.begun = True, None
        # Of each hidden parameter what was hidden.
        self.hidden = []
        for tensor in self.others():
            has_own_memory(tensor)

    def others(self):
        """The parameters of other processes."""
        others = [bucket for owner, _, bucket in self.buckets if owner != self.group.rank]
        return [tensor for bucket in others for tensor in bucket]

    @torch.no_grad()
    def begin(self, with_all_digits: bool = False):
        """Begins to gather the values; `gather` waits for them."""
        if self.is_whole or self.begun is not None:
            return
        self.begun = []
        for owner, dtype, tensors in self.buckets:
            dtype = tensors[0].dtype if with_all_digits else dtype
            if owner == self.group.rank:
                flat = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
            else:
                size = sum(tensor.numel() for tensor in tensors)
                flat = tensors[0].new_empty(size, dtype=dtype)
            self.begun.append((flat, self.group.start_copy(flat, owner, self.channel)))

    @torch.no_grad()
    def gather(self, with_all_digits: bool = False):
        """Has the values of all parameters: those to compute with, or as their owners have them."""
        self.begin(with_all_digits)
        if self.is_whole:
            return
        for (owner, _, tensors), (flat, wait) in zip(self.buckets, self.begun, strict=True):
            wait()
            if owner == self.group.rank:
                continue
            for tensor in tensors:
                tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())
            with unchanged(tuple(tensors)):
                scatter(flat, tensors)
        self.is_whole, self.begun = True, None

    def free(self):
        """Gives the memory of other processes' parameters back."""
        if self.begun is not None:
            for _, wait in self.begun:
                wait()
        for tensor in self.others():
            tensor.untyped_storage().resize_(0)
        self.is_whole, self.begun = False, None

    def hide(self):
        """Shows NaN in place of what is not there."""
        self.hidden = [(tensor, tensor.data) for tensor in self.others()]
        for tensor, values in self.hidden:
            tensor.data = values.new_full((), torch.nan).expand(values.shape)

    def show(self):
        """Ends what `hide` began: the values may be gathered."""
        for tensor, values in self.hidden:
            tensor.data = values
        self.hidden = []


def has_own_memory(tensor):
    """Gives a tensor memory of its own, where it is a part of something or NumPy has its values."""
    storage = tensor.untyped_storage()
    is_all = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
    if not (is_all and storage.resizable()):
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)


def sent_dtypes(model, tensors) -> dict:
    """What each tensor of a model is sent in, by its id: what the layers compute with.

    Under a mixed policy a layer of Keras casts its float32 weights before it computes. So others
    need no more than the cast; the owner keeps and updates float32. What is outside of the layers,
    such as the head, is read elsewhere too.
    """
    found = {id(tensor): tensor.dtype for tensor in tensors}
    for block in filter(is_keras_layer, layers_of(model)):
        # A layer comes before those inside of it, which say what they compute in.
        for layer in all_layers(block):
            for variable in layer.variables:
                if is_cast_for(variable, layer):
                    found[id(variable.value)] = getattr(torch, layer.compute_dtype)
                else:
                    found[id(variable.value)] = variable.value.dtype
    return found


def parts_of(model, tensors) -> tuple:
    """How the parameters of a model come and go.

    Returns:
        The layers that have some of `tensors` for themselves, with these; and the tensors that are
        in no layer or in several.
    """
    among = {id(tensor): tensor for tensor in tensors}
    found = [
        (layer, {id(p) for p in layer.parameters()} & among.keys()) for layer in layers_of(model)
    ]
    uses = collections.Counter(key for _, keys in found for key in keys)
    parts = [
        (layer, [among[id(p)] for p in layer.parameters() if uses[id(p)] == 1])
        for layer, _ in found
    ]
    return [part for part in parts if part[1]], [t for key, t in among.items() if uses[key] != 1]


def bytes_gathered(model, tensors) -> int:
    """The bytes of the parameters that come for a forward and a backward pass."""
    dtypes = sent_dtypes(model, tensors)
    layers, _ = parts_of(model, tensors)
    # The backward pass begins with the last layer, which is still there.
    twice = [tensor for _, part in layers[:-1] for tensor in part]
    return sum(tensor.numel() * dtypes[id(tensor)].itemsize for tensor in (*tensors, *twice))


def is_keras_layer(layer) -> bool:
    """Whether a layer is one of Keras; else it is a module of PyTorch."""
    return isinstance(layer, keras.Layer)


def layers_of(model) -> list:
    """The layers of a model that are computed one after the other, each with parameters of its own.

    Those of a backbone of Keras are its direct parts that have parts themselves; those of a model
    of transformers are the entries of its lists of layers.
    """
    backbone = getattr(model, "backbone", None)
    outside = vars(backbone).get("model") if backbone is not None else None
    if isinstance(outside, torch.nn.Module):
        found = lists_in(outside)
    else:
        found = [part for part in getattr(backbone, "layers", []) if len(all_layers(part)) > 1]
    return [layer for layer in found if any(True for _ in layer.parameters())]


def lists_in(module) -> list:
    """The entries of the outermost lists of modules inside of a module, in their order."""
    found = []
    for child in module.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else lists_in(child)
    return found
