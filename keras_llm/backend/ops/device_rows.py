"""Rows of a batch that `keras.distribution` has spread over devices: each computes with its own."""

import keras
from keras import ops


def devices_of_rows() -> int:
    """Over how many devices the rows of a batch are spread; 1 where there is no distribution."""
    distribution = keras.distribution.distribution()
    # TensorFlow and PyTorch accept one and do nothing about it.
    if distribution is None or keras.backend.backend() != "jax":
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


def with_own_rows(function, rows, whole):
    """What a function makes of rows, where each device takes those that it has.

    A sort, or a loop over some rows at a time, would gather the rows of all devices on each.

    Args:
        function: `(rows, whole) -> sums, of_rows`: arrays that are sums over the rows, and arrays
            with one entry a row.
        rows: Arrays with the same first dimension; filled up with zeros where the devices do not
            divide it.
        whole: Arrays that belong to no row.

    Returns:
        `sums` over the rows of all devices, and `of_rows` of all rows.
    """
    devices = devices_of_rows()
    if devices == 1:
        return function(rows, whole)

    import jax

    def on_one_device(rows, whole):
        sums, of_rows = function(rows, whole)
        return jax.lax.psum(sums, axis), of_rows

    distribution = keras.distribution.distribution()
    axis = distribution.batch_dim_name
    split, not_split = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    spread = jax.shard_map(
        on_one_device,
        mesh=distribution.device_mesh.backend_mesh,
        in_specs=(split, not_split),
        out_specs=(not_split, split),
        # Other axes of the mesh, over which weights are split, stay XLA's.
        axis_names={axis},
        check_vma=False,
    )
    count = rows[0].shape[0]
    filled = [(0, -count % devices)]
    rows = [ops.pad(x, filled + [(0, 0)] * (len(x.shape) - 1)) for x in rows]
    # Outside of a compiled step, an axis that stays XLA's needs a function that is compiled.
    sums, of_rows = jax.jit(spread)(rows, whole)
    return sums, [x[:count] for x in of_rows]
