"""Products of few rows, which take as long as their matrices take to be read.

On a CPU, and in float32, there are faster ways than `torch.mm`, by the number of rows.
"""

import operator

import torch
from torch.fx import Graph, Node

from keras_llm.backend.torch.graph_passes import add_node, known_ahead

ATEN = torch.ops.aten
# oneDNN's product, which reads a matrix that was packed for it.
PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
PACKED_PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
HAS_PACKED = torch.backends.mkldnn.is_available() and None not in (PACK, PACKED_PRODUCT)
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines
# Of matrices of more bytes there is no second copy.
LARGEST = 2**28


def best_product(rows: int, steps: int):
    """The fastest of the products below, if so many steps with so many rows are to come."""
    if rows == 1 and HAS_FBGEMM:
        return sum_of_rows
    # Packing takes about as long as forty products, and saves a third of each.
    if rows >= 4 and steps >= 64 and HAS_PACKED:
        return packed_product
    return plain_product


def plain_product(graph: Graph, source: Node, matrix: Node) -> Node:
    """`torch.mm`, with a matrix whose rows are stored one after another.

    A transposed embedding is not such a one; to read it takes three times as long.
    """
    if not matrix.meta["val"].is_contiguous():
        matrix = add_node(graph, ATEN.clone.default, matrix, memory_format=torch.contiguous_format)
    return add_node(graph, ATEN.mm.default, source, matrix)


def sum_of_rows(graph: Graph, source: Node, matrix: Node) -> Node:
    """The product with one row is the sum of the matrix's rows, weighted by the row's numbers.

    FBGEMM's sum reads a matrix that is not wide twice as fast as MKL's product.
    """
    height, width = matrix.meta["val"].shape
    if width > height or not matrix.meta["val"].is_contiguous():
        return plain_product(graph, source, matrix)
    device = {"device": matrix.meta["val"].device}
    indices = add_node(graph, ATEN.arange.default, height, **device)
    offsets = add_node(graph, ATEN.zeros.default, [1], dtype=torch.int64, **device)
    weights = add_node(graph, ATEN.view.default, source, [-1])
    sums = graph.call_function(
        torch.embedding_bag, (matrix, indices, offsets, False, 0, False, weights)
    )
    result = graph.call_function(operator.getitem, (sums, 0))
    result.meta["val"] = torch.mm(source.meta["val"], matrix.meta["val"])
    return result


def packed_product(graph: Graph, source: Node, matrix: Node) -> Node:
    """oneDNN's product, which starts later than MKL's: for large matrices."""
    if matrix.meta["val"].numel() < 2**18:
        return plain_product(graph, source, matrix)
    columns = add_node(graph, ATEN.t.default, matrix)
    packed = graph.call_function(PACK.default, (columns,))
    packed.meta["val"] = columns.meta["val"]
    return add_node(graph, PACKED_PRODUCT.default, source, packed, None, "none", [], "")


def prepare_matrices(graph: Graph, weights: int, product) -> None:
    """Has matrices made, from the weights alone, that take less time to be multiplied.

    Those that one tensor is multiplied by, such as queries', keys' and values', become one.

    Args:
        graph: Its first inputs are weights. Changed in place.
        weights: Their number.
        product: One of the above, for float32 on a CPU.
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
        with graph.inserting_before(products[0]):
            prepare(graph, products, product)
    graph.eliminate_dead_code()


def prepare(graph: Graph, products: list[Node], product) -> None:
    """The same for the products of one tensor."""
    source, matrices = products[0].args[0], [product.args[1] for product in products]
    values = [matrix.meta["val"] for matrix in matrices]
    if sum(value.nbytes for value in values) > LARGEST:
        return
    matrix = add_node(graph, ATEN.cat.default, matrices, 1) if len(products) > 1 else matrices[0]
    if values[0].device.type == "cpu" and values[0].dtype == torch.float32:
        result = product(graph, source, matrix)
    else:
        result = add_node(graph, ATEN.mm.default, source, matrix)
    results = [result]
    if len(products) > 1:
        widths = [value.shape[1] for value in values]
        parts = add_node(graph, ATEN.split_with_sizes.default, result, widths, 1)
        results = [add_node(graph, operator.getitem, parts, i) for i in range(len(products))]
    for before, after in zip(products, results, strict=True):
        before.replace_all_uses_with(after)
