"""An optimizer's state by parts: taken apart, and put together again, without knowing what it is.

An optimizer names its variables after the model's variable that they belong to. So those of an
optimizer that was built with some variables are found, by name, among those of one that was built
with all of them.
"""

import contextlib

import keras
import torch

from keras_llm.training.torch.owners import Owners


def copy_built_with(optimizer, variables, device=None):
    """An optimizer with the same settings, its state that of a beginning, on a device."""
    twin = type(optimizer).from_config(optimizer.get_config())
    with contextlib.nullcontext() if device is None else keras.device(device):
        twin.build(variables)
    return twin


def part_of(optimizer, variables):
    """The optimizer as if it had been built with some of its variables only."""
    part = copy_built_with(optimizer, variables)
    state = by_name(optimizer)
    for name, variable in by_name(part).items():
        variable.assign(state[name])
    return part


def gathered_state(group, optimizer, owners: Owners):
    """The optimizer with the state of all variables, in the first process; None in the others.

    Args:
        group: The `ProcessGroup`.
        optimizer: Built with the variables of this process.
        owners: Who has the others.
    """
    whole = copy_built_with(optimizer, owners.variables) if group.is_first else None
    places = by_name(whole) if group.is_first else {}
    known = by_name(optimizer)
    for process in range(group.size):
        own = [v for v in owners.variables if owners.of(v) == process]
        # Names and shapes, without memory.
        layout = by_name(copy_built_with(optimizer, own, device="meta"))
        for name, like in layout.items():
            if process == group.rank:
                values = known[name].value.detach().contiguous()
            else:
                values = torch.empty(like.shape, dtype=like.value.dtype, device=group.device)
            group.start_copy(values, process)()
            if name in places:
                places[name].assign(values)
    return whole


def by_name(optimizer) -> dict:
    """An optimizer's variables by their names.

    Raises:
        ValueError: two have one name.
    """
    found = {}
    for variable in optimizer.variables:
        name = variable.path.split("/", 1)[-1]
        if name in found:
            raise ValueError(
                "Variables of a model whose optimizer is sharded must have paths of their own, by "
                f"which its state is put together. Received: two of {variable.path!r}"
            )
        found[name] = variable
    return found


def become(optimizer, other):
    """Makes an optimizer what another one of its class is; whoever holds it sees the change."""
    vars(optimizer).clear()
    vars(optimizer).update(vars(other))
