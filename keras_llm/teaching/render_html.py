"""An explanation as a piece of an HTML page, for a notebook or a report.

JupyterLab shows a notebook that somebody else ran without its `<style>`s and drawings, and puts the
text of cells to the right. What must be readable there does without: blocks and spaces of HTML's
own, alignment at the cell, words between the texts of a drawing.
"""

from html import escape

from keras_llm.teaching.facts import Curve, Fact, Section, shown
from keras_llm.teaching.table import table_html

# Colours are the page's own, paler or stronger, so that light and dark pages are both readable;
# the one colour of its own is of middle brightness and never alone: a mark goes with it. Cells are
# named by two classes, since JupyterLab names them by as many.
STYLE = """
.keras-llm-explain { max-width: 62em; line-height: 1.45; container-type: inline-size; }
.keras-llm-explain h3 { font-size: 1em; font-weight: 600; margin: 1.2em 0 .3em; }
.keras-llm-explain h3 code { font-weight: normal; background: none; }
.keras-llm-explain table { border-collapse: collapse; border: 0; width: 100%; margin: 0;
  table-layout: fixed; }
.keras-llm-explain tr { background: none !important;
  border-top: 1px solid rgba(128, 128, 128, .3); }
.keras-llm-explain :is(.facts, .rows) td { border: 0; padding: .2em .8em .2em 0;
  vertical-align: top; color: inherit; overflow-wrap: anywhere; }
.keras-llm-explain col.name { width: 14em; }
.keras-llm-explain col.value { width: 5.5em; }
.keras-llm-explain col.usual { width: 13em; }
.keras-llm-explain sup { line-height: 0; }
.keras-llm-explain .note, .keras-llm-explain .usual, .keras-llm-explain footer { opacity: .75; }
.keras-llm-explain .flag { border-left: 3px solid #c77700;
  padding-left: .6em; }
.keras-llm-explain svg { display: block; width: 100%; max-width: 36em; height: auto;
  margin: .4em 0; }
.keras-llm-explain a { color: inherit; }
.keras-llm-explain footer { font-size: .85em; margin-top: 1.2em; }
.keras-llm-explain .rows { overflow-x: auto; }
.keras-llm-explain .rows table { width: auto; table-layout: auto; }
.keras-llm-explain .rows td { white-space: nowrap; padding-right: 1.6em; }
@container (max-width: 44em) {
  .keras-llm-explain .facts, .keras-llm-explain .facts tbody { display: block; }
  .keras-llm-explain .facts colgroup { display: none; }
  .keras-llm-explain .facts tr { display: flex; flex-wrap: wrap; padding: .2em 0; }
  .keras-llm-explain .facts td { padding: 0 .8em 0 0; }
  .keras-llm-explain .facts td:first-child { flex: 0 0 100%; font-weight: 600; }
  .keras-llm-explain .rows td { padding-right: .8em; }
}
"""


CELL = '<td style="text-align: left"'
COLUMNS = '<colgroup><col class="name"><col class="value"><col class="usual"><col></colgroup>'


def html(explanation) -> str:
    """The explanation as one `<div>`, with its own style and nothing to load."""
    look = f'<p class="flag">{explanation.verdict}</p>' if explanation.verdict else ""
    numbers = {key: n for n, key in enumerate(explanation.sources, start=1)}
    sections = "".join(section_html(section, numbers) for section in explanation.sections)
    return (
        f'<div class="keras-llm-explain"><style>{STYLE}</style>'
        f"<p><strong>{escape(explanation.title)}</strong></p>{look}"
        f"{sections}{footer(explanation.sources)}</div>"
    )


def section_html(section: Section, numbers) -> str:
    """The heading, the curve, the table and the facts."""
    subject = f" <code>{escape(section.subject)}</code>" if section.subject else ""
    rows = "".join(fact_html(fact, numbers) for fact in section.facts)
    return (
        f"<h3>{escape(section.title)}{subject}</h3>"
        f"{curve_html(section.curve) if section.curve else ''}"
        f"{table_html(section.table) if section.table else ''}"
        f'<table class="facts">{COLUMNS}<tbody>{rows}</tbody></table>'
    )


def fact_html(fact: Fact, numbers) -> str:
    """A row: the name, the value, where it usually lies, what it means and what is odd."""
    note = f'&emsp;<span class="note">{escape(fact.note)}</span>' if fact.note else ""
    if fact.details:
        items = "<br>".join(escape(line) for line in fact.details)
        note += f"<details><summary>all {len(fact.details)}</summary>{items}</details>"
    if fact.flag:
        note += f'<div class="flag">▲ {escape(fact.flag)}</div>'
    name = f"{CELL}>{escape(fact.name).replace('_', '_<wbr>')}</td>"
    if not fact.typical:
        return f'<tr>{name}{CELL} colspan="3">{escape(fact.text)}{note}</td></tr>'
    marks = " ".join(f"{numbers[key]}" for key in fact.typical.sources)
    usual = f'{CELL} class="usual">usual: {escape(str(fact.typical))} <sup>{marks}</sup></td>'
    note = note.removeprefix("&emsp;")
    return f"<tr>{name}{CELL}>{escape(fact.text)}</td>{usual}{CELL}>{note}</td></tr>"


def footer(sources) -> str:
    """The sources, by their numbers."""
    if not sources:
        return ""
    links = (
        f'{n} <a href="{escape(address)}">{escape(name)}</a>'
        for n, (name, address) in enumerate(sources.values(), start=1)
    )
    return f"<footer>Usual ranges are from {'; '.join(links)}.</footer>"


def curve_html(curve: Curve) -> str:
    """The curve as a drawing in the page's own colour, with a dot for today."""
    width, height, left, top = 600, 110, 60, 12
    end, peak = max(curve.steps[-1], 1), max(curve.values) or 1.0

    def place(step, value):
        x = left + step / end * (width - left - 12)
        return f"{x:.1f},{top + (1 - value / peak) * (height - top - 24):.1f}"

    points = " ".join(place(s, v) for s, v in zip(curve.steps, curve.values, strict=True))
    x, y = place(curve.step, curve.value).split(",")
    zero = height - 24
    title = f"learning rate {shown(curve.value)} at update {curve.step:,}, peak {shown(peak)}"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"'
        f' font-size="14" fill="currentColor"><title>{escape(title)}</title>'
        f'<path d="M{left},{top}V{zero}H{width - 12}" fill="none" stroke="currentColor"'
        f' stroke-opacity=".35"/>'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{x}" cy="{y}" r="5" fill="#c77700"/>'
        f'; from <text x="{left - 6}" y="{zero + 4}" text-anchor="end">0</text>'
        f' to <text x="{left - 6}" y="{top + 4}" text-anchor="end">{escape(shown(peak))}</text>'
        f', from <text x="{left}" y="{height - 6}">0</text> to '
        f'<text x="{width - 12}" y="{height - 6}" text-anchor="end">{end:,} updates</text></svg>'
    )
