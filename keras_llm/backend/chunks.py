"""How much of the logits the pass over the vocabulary holds at once."""

# Enough rows for products to run at full speed; on a GPU, to fill the device.
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 256 * 2**20, 512 * 2**20
# What is done to logits one after another should find them in a core's cache.
CPU_TILE_COLUMNS = 1024


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """How many rows of float32 logits are held at once.

    Args:
        vocab_size: Length of a row.
        device_type: `"cpu"`, or what PyTorch calls another kind of device.
    """
    if device_type == "cpu":
        return min(max(CPU_CHUNK_BYTES // (4 * vocab_size), 64), 512)
    return max(GPU_CHUNK_BYTES // (4 * vocab_size), 256)


def tiles(vocab_size: int, device_type: str) -> list[slice]:
    """The parts of a chunk that are worked on one after another, as slices of the vocabulary.

    Also for the product's sake: a CPU makes few rows of 50,000 logits at half of its speed.
    """
    width = CPU_TILE_COLUMNS if device_type == "cpu" else vocab_size
    return [slice(start, start + width) for start in range(0, vocab_size, width)]
