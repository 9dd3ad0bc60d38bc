"""The type of tensors in signatures."""

from typing import Any, TypeAlias

# A tensor of the backend that runs, or what Keras converts to one, such as a NumPy array. There is
# no type that is both: the backend is chosen at run time.
Tensor: TypeAlias = Any
