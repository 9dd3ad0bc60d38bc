"""Memory of a fixed length that is written to while tokens are generated."""

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.cache import (
        empty,
        latest,
        narrowed,
        reordered,
        stored,
        taken,
        written,
    )
else:
    from keras_llm.backend.ops.cache import (
        empty,
        latest,
        narrowed,
        reordered,
        stored,
        taken,
        written,
    )

__all__ = ["empty", "latest", "narrowed", "reordered", "stored", "taken", "written"]
