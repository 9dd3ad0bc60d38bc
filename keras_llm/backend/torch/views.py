"""Fewer views in a graph of torch operations."""

import torch

VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def merge_views(module: torch.fx.GraphModule) -> None:
    """Makes a view of a view one view, and the same view twice one too.

    Every product of a matrix with `[batch, length, d_model]` flattens its input and unflattens its
    output: a fifth of a transformer's operations. They copy nothing, but forward and backward each
    takes as long as a small product.

    Args:
        module: What `make_fx` returns: its nodes know their shapes. Changed in place.
    """
    known = {}
    for node in module.graph.nodes:
        if node.target not in VIEWS:
            continue
        source, shape = node.args[0], node.meta["val"].shape
        while source.target in VIEWS:
            source = source.args[0]
        if source.meta["val"].shape == shape:
            node.replace_all_uses_with(source)
        elif (source, shape) in known:
            node.replace_all_uses_with(known[source, shape])
        else:
            known[source, shape] = node
            node.target, node.args = torch.ops.aten.view.default, (source, list(shape))
    module.graph.eliminate_dead_code()
    module.recompile()
