"""Constants of a graph, computed once instead of in every call."""

import torch

from keras_llm.backend.torch.graph_passes import written_nodes

# Larger ones, such as a mask of all pairs, are rather computed again than kept for each shape.
MAX_BYTES = 16 * 2**20


def fold_constants(module: torch.fx.GraphModule) -> None:
    """Replaces what depends on no input, such as the cosines of rotary positions, by its value.

    A compiler would compute a table of cosines again in each kernel that reads it.

    Args:
        module: What `make_fx` returns: its nodes know their results. Changed in place.
    """
    graph, values = module.graph, {}
    written = written_nodes(graph)
    # Not as inference tensors, which no backward pass takes.
    with torch.inference_mode(False), torch.no_grad():
        for node in graph.nodes:
            if node not in written and is_constant(node, values):
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.get)
                values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        if all(user in values for user in node.users):
            continue
        name = f"constant_{node.name}"
        module.register_buffer(name, value, persistent=False)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code()
    module.recompile()


def is_constant(node: torch.fx.Node, known) -> bool:
    """Whether the result is a small tensor that is the same in every call.

    Args:
        node: The node.
        known: The constants before it.
    """
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor) or result.nbytes > MAX_BYTES:
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    return all(source in known for source in node.all_input_nodes)
