"""Updates whose gradient is far larger than those before it: `FiniteGuard(deviations=...)`."""

from keras import ops

from keras_llm.tensor import Tensor
from keras_llm.token_statistics import divide

# In place of a norm that is not known yet.
UNKNOWN = -1.0


def is_outlier(norm: Tensor, recent: Tensor, deviations: float) -> Tensor:
    """Whether a norm is greater than mean + `deviations` * standard deviation of recent ones.

    False until half of the window is known.

    Args:
        norm: The global norm of an update's gradients, a scalar.
        recent: Those of the updates before, `[window]`; `UNKNOWN` where there is none.

    >>> recent = ops.convert_to_tensor([UNKNOWN, 1.0, 2.0, 3.0])
    >>> [bool(is_outlier(ops.convert_to_tensor(norm), recent, 2.0)) for norm in (3.6, 3.7)]
    [False, True]
    """
    known = ops.cast(recent >= 0, recent.dtype)
    count = ops.sum(known)
    mean = divide(ops.sum(recent * known), count)
    variance = divide(ops.sum(ops.square(recent - mean) * known), count)
    is_enough = count * 2 >= recent.shape[0]
    return ops.logical_and(is_enough, norm > mean + deviations * ops.sqrt(variance))


def remembered(norm: Tensor, recent: Tensor) -> Tensor:
    """The window after an update: without its oldest norm, unless the new one is not finite.

    An outlier belongs to the window, so that a lasting change is accepted after a while.
    """
    norm = ops.cast(norm, recent.dtype)
    later = ops.concatenate([recent[1:], ops.reshape(norm, (1,))])
    return ops.where(ops.isfinite(norm), later, recent)
