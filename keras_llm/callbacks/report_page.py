"""The page that `TrainingReport` writes."""

import dataclasses
import io
import math
import os
import re
from datetime import datetime
from pathlib import Path

import keras

from keras_llm.html_template import render_html

# Replaced by the colour of the page's text, which Matplotlib has no name for.
INK = "#010203"
DRAWING = {
    "svg.fonttype": "none",  # text in the page's font, not outlines of letters
    "font.size": 11,
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
}


@dataclasses.dataclass(frozen=True)
class EpochRow:
    """What is known after `epoch` epochs; if no epoch has ended, there are samples only."""

    epoch: int
    logs: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    samples: tuple[str, ...] = ()


class ReportPage:
    """What the page shows, and where it is written; `prompts` are what its samples continue."""

    def __init__(self, path: str | os.PathLike, title: str, prompts: tuple[str, ...]):
        self.path, self.title, self.prompts = Path(path), title, prompts
        self.rows, self.explained = [], ""
        # The run's log points; where there are more than epochs, curves are over steps.
        self.points = []

    def write(self, status: str):
        """Writes the page. A reader finds the old file or the new one, never half of one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(self.path.name + ".part")
        half.write_text(self.html(status), encoding="utf-8")
        half.replace(self.path)

    def html(self, status: str) -> str:
        """The page."""
        trained = [row for row in self.rows if row.logs]
        validated = [row for row in trained if "val_loss" in row.logs]
        names = log_names(trained)
        metrics = dict.fromkeys(name.removeprefix("val_") for name in names)
        return render_html(
            "callbacks/report.html",
            title=self.title,
            status=status,
            seconds=round(sum(row.seconds for row in trained)),
            rows=self.rows,
            trained=trained,
            best=min(validated, key=lambda row: row.logs["val_loss"], default=None),
            names=names,
            drawings=self.drawings(trained, metrics),
            prompts=self.prompts,
            explained=self.explained,
            four_digits=four_digits,
            now=datetime.now(),
        )

    def drawings(self, trained, metrics):
        """What is drawn, and the picture: over steps where that shows more."""
        by_step = {name for point in self.points for name in point} & set(metrics)
        if len(self.points) <= len(trained):
            by_step = set()
        # By epoch, the second scale of the loss is perplexity.
        names = [name for name in metrics if name in by_step or name != "perplexity"]
        return [
            (f"{name} by step", step_drawing(self.points, name))
            if name in by_step
            else (f"{name} by epoch", drawing(trained, name))
            for name in names
        ]


def log_names(rows: list[EpochRow]) -> list[str]:
    """What was logged: the loss first, validation beside training."""

    def order(name):
        metric = name.removeprefix("val_")
        return metric != "loss", metric, name != metric

    return sorted({name for row in rows for name in row.logs}, key=order)


def four_digits(number: float) -> str:
    """A number as people write it.

    >>> four_digits(0.031234), four_digits(30522.4)
    ('0.03123', '30,522')
    """
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.4g}"


def drawing(rows: list[EpochRow], metric: str) -> str:
    """A metric's curve by epoch as an `<svg>`."""
    from keras_llm.plots import learning_curves

    history = keras.callbacks.History()
    history.epoch = [row.epoch - 1 for row in rows]
    history.history = {
        name: [row.logs.get(name, math.nan) for row in rows] for name in log_names(rows)
    }
    return svg(metric, lambda ax: learning_curves(history, metric, ax=ax))


def step_drawing(points: list[dict], metric: str) -> str:
    """A metric's curve by step as an `<svg>`."""
    from keras_llm.plots import step_curves

    return svg(metric, lambda ax: step_curves(points, metric, ax=ax))


def svg(name: str, draw) -> str:
    """A picture in the page's colours and font; `draw` draws into axes."""
    # Imported here, so that only reports need Matplotlib.
    from matplotlib import style
    from matplotlib.figure import Figure

    file = io.StringIO()
    with style.context(["default", {**DRAWING, "svg.hashsalt": name}]):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        draw(figure.subplots())
        no_metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    # Without the ids that nothing refers to: every drawing has the same ones.
    return re.sub(r' id="[A-Za-z.\d]+_\d+"', "", drawn)
