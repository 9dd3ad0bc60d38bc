"""Pictures of training, with Matplotlib: one function a picture.

Each draws into `ax`, or into a new figure, and returns the axes. Text and frames have the colours
of `matplotlib.rcParams`, and lines and cells show on light and dark backgrounds alike.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        'keras_llm.plots draws with Matplotlib. Run: pip install "keras_llm[plots]"'
    ) from error

from keras_llm.plots.formulas import focal, loss_memory, smoothing
from keras_llm.plots.learning_curves import learning_curves
from keras_llm.plots.schedule import schedule
from keras_llm.plots.step_curves import step_curves
from keras_llm.plots.token_loss import token_loss

__all__ = [
    "focal",
    "learning_curves",
    "loss_memory",
    "schedule",
    "smoothing",
    "step_curves",
    "token_loss",
]
