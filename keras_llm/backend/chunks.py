"""How much of the logits the pass over the vocabulary holds at once."""

# Enough rows for products to run at full speed.
CPU_CHUNK_BYTES = 256 * 2**20
# A GPU reads and writes the kernel's gradient (8 bytes a number) once a chunk, while it multiplies
# 6 * rows: of 4,096 rows in bfloat16 that is 9 % of the products' time (3 TB/s, 790 TFLOP/s), of
# 2,048 in float32 at most that, whatever the sizes of the model.
GPU_CHUNK_ROWS = 2048
# Of the memory that is free: the chunk is not the last thing that a step asks for.
GPU_SHARE = 0.25
# What is done to logits one after another should find them in a core's cache.
CPU_TILE_COLUMNS = 1024


def chunk_rows(vocab_size: int, device_type: str, itemsize: int = 4, free=None) -> int:
    """How many rows over the vocabulary are held at once.

    Args:
        vocab_size: Length of a row.
        device_type: `"cpu"`, or what PyTorch calls another kind of device.
        itemsize: Bytes of a number.
        free: Bytes that the device has left; None where it has enough, or cannot say.
    """
    if device_type == "cpu":
        return min(max(CPU_CHUNK_BYTES // (4 * vocab_size), 64), 512)
    rows = GPU_CHUNK_ROWS * 4 // itemsize
    if free is not None:
        rows = min(rows, int(GPU_SHARE * free) // (itemsize * vocab_size))
    return max(rows, 256)


def tiles(vocab_size: int, device_type: str) -> list[slice]:
    """The parts of a chunk that are worked on one after another, as slices of the vocabulary.

    Also for the product's sake: a CPU makes few rows of 50,000 logits at half of its speed.
    """
    width = CPU_TILE_COLUMNS if device_type == "cpu" else vocab_size
    return [slice(start, start + width) for start in range(0, vocab_size, width)]
