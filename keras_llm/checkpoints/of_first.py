"""The state that the first of several processes has read, for the others."""

import json

from keras_llm.checkpoints.folder import Found
from keras_llm.checkpoints.state_tree import pack, unpack
from keras_llm.checkpoints.tensor_file import from_bytes, to_bytes
from keras_llm.distribution import world


def found_by_first(find) -> Found:
    """What the first process finds in its folder; the others need not see its disk.

    The others get no weights, no optimizer and no gradients: those of the first become theirs when
    training begins.

    Args:
        find: A function without arguments; called in the first process only.
    """
    if world().size == 1:
        return find()
    found, data = None, b""
    if world().is_first:
        found = find()
        packed, arrays = pack((found.name, without_weights(found.state), found.bad))
        text = json.dumps(packed).encode()
        data = len(text).to_bytes(8, "little") + text + to_bytes(arrays)
    data = world().bytes_of_first(data)
    if found is not None:
        return found
    end = 8 + int.from_bytes(data[:8], "little")
    return Found(*unpack(json.loads(data[8:end]), from_bytes(data[end:])))


def without_weights(state):
    """The state without what is as large as the model."""
    if state is None:
        return None
    step = state["model"]["step"]
    step = step | {"window": step["window"] | {"gradients": []}}
    return state | {"model": {"step": step}}
