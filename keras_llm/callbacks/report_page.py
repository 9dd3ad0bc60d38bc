"""The page that `TrainingReport` writes."""

import dataclasses
import io
import math
import os
import re
from datetime import datetime
from html import escape
from pathlib import Path

import keras

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c1e21; --faint: #80808055; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171a; --text: #e4e6e8; } }
body { background: var(--ground); color: var(--text); max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; }
h2 { margin: 2.5rem 0 .8rem; border-bottom: 1px solid var(--faint); }
.curves { display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; }
figure svg { width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
.wide { overflow-x: auto; }
.epochs { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.epochs th, .epochs td { padding: .25rem .7rem; text-align: right; vertical-align: bottom; }
.epochs tbody th, .epochs td { white-space: nowrap; }
.epochs tr { border-top: 1px solid var(--faint); }
.epochs thead tr { border: 0; }
.epochs .best { font-weight: bold; }
.samples { display: grid; grid-template-columns: max-content 1fr; gap: .5rem 1.2rem; margin: 0; }
.samples dt, footer { opacity: .75; }
.samples dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 9rem;
  overflow-y: auto; }
"""
# Stands for the colour of the page's text, which Matplotlib cannot name.
INK = "#010203"
DRAWING = {
    "svg.fonttype": "none",  # letters, which the page sets, and not their outlines
    "font.size": 11,
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known after so many epochs; after none, there are samples only."""

    epoch: int
    logs: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    samples: tuple[str, ...] = ()


class ReportPage:
    """What the page shows, and where it is written.

    Args:
        path: The file.
        title: The heading.
        prompts: What the samples of each row continue.
    """

    def __init__(self, path: str | os.PathLike, title: str, prompts: tuple[str, ...]):
        self.path = Path(path)
        self.title = title
        self.prompts = prompts
        self.rows = []
        self.explained = ""

    def write(self, status: str):
        """Writes the page. A reader finds the old file or the new one, never half of one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(self.path.name + ".part")
        half.write_text(self.html(status), encoding="utf-8")
        half.replace(self.path)

    def html(self, status: str) -> str:
        """The page."""
        trained = [row for row in self.rows if row.logs]
        minutes, seconds = divmod(round(sum(row.seconds for row in trained)), 60)
        sections = {
            "Curves": drawings(trained),
            "Epochs": table(trained),
            "Samples": "".join(
                samples(prompt, [(row.epoch, row.samples[i]) for row in self.rows if row.samples])
                for i, prompt in enumerate(self.prompts)
            ),
            "What compile decided": self.explained,
        }
        body = "".join(
            f"<section><h2>{heading}</h2>{content}</section>"
            for heading, content in sections.items()
            if content
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body>"
            f"<h1>{escape(self.title)}</h1>"
            f"<p>{escape(status)} {minutes} min {seconds} s of training.</p>{body}"
            f"<footer><p>Written {datetime.now():%Y-%m-%d %H:%M:%S}.</p></footer></body></html>\n"
        )


def log_names(rows: list[Row]) -> list[str]:
    """What was logged: the loss first, validation beside training."""

    def order(name):
        metric = name.removeprefix("val_")
        return metric != "loss", metric, name != metric

    return sorted({name for row in rows for name in row.logs}, key=order)


def table(rows: list[Row]) -> str:
    """A line an epoch; the one of the lowest validation loss, where there is one, stands out."""
    if not rows:
        return ""
    names = log_names(rows)
    validated = [row for row in rows if "val_loss" in row.logs]
    best = min(validated, key=lambda row: row.logs["val_loss"], default=None)
    head = "".join(
        f"<th>{escape(name).replace('_', '_<wbr>')}</th>" for name in ("epoch", *names, "seconds")
    )
    lines = []
    for row in rows:
        numbers = [four_digits(row.logs[name]) if name in row.logs else "" for name in names]
        cells = "".join(f"<td>{number}</td>" for number in (*numbers, f"{row.seconds:.1f}"))
        look, mark = (' class="best"', "★ ") if row is best else ("", "")
        lines.append(f"<tr{look}><th>{mark}{row.epoch}</th>{cells}</tr>")
    note = "<p>★ lowest validation loss</p>" if best else ""
    return (
        f'<div class="wide"><table class="epochs"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{note}"
    )


def four_digits(number: float) -> str:
    """A number as people write it.

    >>> four_digits(0.031234), four_digits(30522.4)
    ('0.03123', '30,522')
    """
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.4g}"


def samples(prompt: str, texts: list[tuple[int, str]]) -> str:
    """How the model went on from a prompt, epoch by epoch."""
    lines = []
    for epoch, text in texts:
        when = f"epoch {epoch}" if epoch else "before"
        text = escape(text.removeprefix(prompt).strip())
        lines.append(f"<dt>{when}</dt><dd>{text}</dd>")
    return f'<h3>{escape(prompt)} …</h3><dl class="samples">{"".join(lines)}</dl>'


def drawings(rows: list[Row]) -> str:
    """The curves of the loss, with perplexity, and of every metric."""
    if not rows:
        return ""
    metrics = dict.fromkeys(name.removeprefix("val_") for name in log_names(rows))
    metrics.pop("perplexity", None)  # the second scale of the loss
    figures = "".join(drawing(rows, name) for name in metrics)
    return f'<div class="curves">{figures}</div>'


def drawing(rows: list[Row], metric: str) -> str:
    """A metric's curve as an `<svg>` in the page's colours and letters."""
    # Here, so that only those who want a report need Matplotlib.
    from matplotlib import style
    from matplotlib.figure import Figure

    from keras_llm.teaching.plots import learning_curves

    history = keras.callbacks.History()
    history.epoch = [row.epoch - 1 for row in rows]
    history.history = {
        name: [row.logs.get(name, math.nan) for row in rows] for name in log_names(rows)
    }
    file = io.StringIO()
    with style.context(["default", {**DRAWING, "svg.hashsalt": metric}]):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        learning_curves(history, metric, ax=figure.subplots())
        no_metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Names that nothing refers to, the same ones in every drawing.
    svg = re.sub(r' id="[A-Za-z.\d]+_\d+"', "", svg)
    label = f"{escape(metric)} by epoch"
    return f'<figure role="img" aria-label="{label}">{svg}</figure>'
