"""How much of the logits the pass over the vocabulary holds at once."""

# On a CPU a chunk of the logits should stay near the caches; on a GPU it should fill the device.
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 64 * 2**20, 512 * 2**20


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """How many rows of float32 logits are held at once.

    Args:
        vocab_size: Length of a row.
        device_type: `"cpu"`, or what PyTorch calls another kind of device.
    """
    if device_type == "cpu":
        return min(max(CPU_CHUNK_BYTES // (4 * vocab_size), 64), 512)
    return max(GPU_CHUNK_BYTES // (4 * vocab_size), 256)
