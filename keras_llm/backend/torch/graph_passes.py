"""Fewer and cheaper operations in a graph that `make_fx` made of a function without gradients."""

import types

import torch
from torch.fx import Graph, GraphModule, Node


def written_nodes(graph: Graph) -> set[Node]:
    """The nodes whose memory some operation of the graph writes to, under any of their names."""
    first_name, written = {}, set()
    for node in graph.nodes:
        first_name[node] = node
        for argument, is_write in aliased_arguments(node):
            first_name[node] = first_name[argument]
            if is_write:
                written.add(first_name[argument])
    return {node for node, first in first_name.items() if first in written}


def aliased_arguments(node: Node):
    """`(argument, whether it is written to)` of all that the result may share memory with."""
    if not isinstance(node.target, torch._ops.OpOverload):
        # An item of several results.
        return [(a, False) for a in node.all_input_nodes] if node.op == "call_function" else []
    return [
        (given, argument.alias_info.is_write)
        for argument, given in zip(node.target._schema.arguments, node.args, strict=False)
        if argument.alias_info is not None and isinstance(given, Node)
    ]


def share_equal(graph: Graph) -> None:
    """Computes once what the graph computes several times, such as each layer's mask."""
    written, known = written_nodes(graph), {}
    for node in graph.nodes:
        if node.op != "call_function" or {node, *node.all_input_nodes} & written:
            continue
        first = known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
    graph.eliminate_dead_code()


def known_ahead(graph: Graph, weights: int) -> set[Node]:
    """The weights, and what depends on them alone, if it takes no more memory than they do.

    A dequantized matrix, for example, takes more.

    Args:
        graph: Its first inputs are weights.
        weights: Their number.
    """
    nodes, written = list(graph.nodes), written_nodes(graph)
    known = {node for node in nodes[:weights] if node not in written}
    for node in nodes[weights:]:
        is_free = node.op in ("get_attr", "call_function") and node not in written
        inputs = node.all_input_nodes
        is_small = not inputs or size(node) <= sum(map(size, inputs))
        if is_free and known.issuperset(inputs) and is_small:
            known.add(node)
    return known


def split(module: GraphModule, weights: int) -> tuple[GraphModule, GraphModule]:
    """A graph in two: what is known from the weights alone, and the rest.

    Returns:
        `ahead: weights -> values`, and `rest: (*values, *other inputs) -> outputs`.
    """
    nodes, known = list(module.graph.nodes), known_ahead(module.graph, weights)
    ahead, rest, in_ahead, in_rest = Graph(), Graph(), {}, {}
    for node in nodes[:weights]:
        in_ahead[node] = ahead.placeholder(node.name)
    for node in nodes[weights:]:
        if node in known:
            in_ahead[node] = ahead.node_copy(node, in_ahead.get)
    passed = [n for n in in_ahead if any(user not in known for user in n.users)]
    ahead.output(tuple(in_ahead[node] for node in passed))
    for node in passed:
        in_rest[node] = rest.placeholder(node.name)
    for node in nodes:
        if node not in in_ahead:
            in_rest[node] = rest.node_copy(node, in_rest.get)
    return GraphModule(module, ahead), GraphModule(module, rest)


def size(node: Node) -> int:
    """The bytes of a node's result."""
    values = node.meta.get("val")
    values = values if isinstance(values, tuple | list) else [values]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def call_directly(graph: Graph) -> None:
    """Calls the functions and methods of `torch`, which start in half the time of `torch.ops`."""
    for node in graph.nodes:
        if getattr(node.target, "namespace", None) != "aten":
            continue
        name = node.target._schema.name.removeprefix("aten::")
        found = (getattr(place, name, None) for place in (torch, torch._C._nn, torch._C._linalg))
        functions = [f for f in found if isinstance(f, types.BuiltinFunctionType)]
        if functions:
            node.target = functions[0]
        elif hasattr(torch.Tensor, name):
            node.op, node.target = "call_method", name


def add_node(graph: Graph, target, *args, **kwargs) -> Node:
    """A new operation, which knows its result's shape as a tracer's do."""
    node = graph.call_function(target, args, kwargs)
    args, kwargs = torch.fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    node.meta["val"] = target(*args, **kwargs)
    return node
