"""Products of few rows, which take as long as their matrices take to be read."""

import operator

import torch
from torch.fx import Graph, Node

from keras_llm.backend.torch.graph_passes import known_ahead

ATEN = torch.ops.aten
# oneDNN's products, which read a matrix that was packed for them.
PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
HAS_PACKED = torch.backends.mkldnn.is_available() and None not in (PACK, PRODUCT)
# Of matrices of more bytes there is no second copy.
LARGEST = 2**28


def prepare_matrices(graph: Graph, weights: int, packed: bool) -> None:
    """Has matrices made, from the weights alone, that take less time to be multiplied.

    Those that one tensor is multiplied by, such as queries', keys' and values', become one. And on
    a CPU one whose rows are not stored one after another, such as a transposed embedding, is
    copied, which is then read in a third of the time.

    Args:
        graph: Its first inputs are weights. Changed in place.
        weights: Their number.
        packed: Whether float32 matrices are packed for a CPU. This takes about as long as thirty
            products, and saves a third of each with four rows or more; with one it saves nothing.
    """
    known, groups = known_ahead(graph, weights), {}
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        if node in known and node.op != "placeholder":
            last.append(node)
            last = node
    for node in graph.nodes:
        if node.target == ATEN.mm.default and node.args[1] in known and node.args[0] not in known:
            groups.setdefault(node.args[0], []).append(node)
    for products in groups.values():
        prepare(graph, products, packed and HAS_PACKED)
    graph.eliminate_dead_code()


def prepare(graph: Graph, products: list[Node], packed: bool) -> None:
    """The same for the products of one tensor."""
    source, matrices = products[0].args[0], [product.args[1] for product in products]
    values = [matrix.meta["val"] for matrix in matrices]
    if sum(value.numel() * value.element_size() for value in values) > LARGEST:
        return
    is_on_host, dtype = values[0].device.type == "cpu", values[0].dtype
    with graph.inserting_before(products[0]):
        matrix = add(graph, ATEN.cat.default, matrices, 1) if len(products) > 1 else matrices[0]
        if packed and is_on_host and dtype == torch.float32:
            columns = add(graph, ATEN.t.default, matrix)
            matrix = graph.call_function(PACK.default, (columns,))
            matrix.meta["val"] = columns.meta["val"]
            result = add(graph, PRODUCT.default, source, matrix, None, "none", [], "")
        else:
            if is_on_host and not matrix.meta["val"].is_contiguous():
                rows = {"memory_format": torch.contiguous_format}
                matrix = add(graph, ATEN.clone.default, matrix, **rows)
            result = add(graph, ATEN.mm.default, source, matrix)
        results = [result]
        if len(products) > 1:
            widths = [value.shape[1] for value in values]
            parts = add(graph, ATEN.split_with_sizes.default, result, widths, 1)
            results = [add(graph, operator.getitem, parts, i) for i in range(len(products))]
    for product, result in zip(products, results, strict=True):
        product.replace_all_uses_with(result)


def add(graph: Graph, target, *args, **kwargs) -> Node:
    """A new operation, which knows its result's shape as a tracer's do."""
    node = graph.call_function(target, args, kwargs)
    args, kwargs = torch.fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    node.meta["val"] = target(*args, **kwargs)
    return node
