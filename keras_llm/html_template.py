"""HTML from the Jinja2 templates that stand beside the code."""

import functools

import jinja2

from keras_llm.value_text import value_text


def render_html(template: str, **values) -> str:
    """Fills in a template of the package, such as `"callbacks/report.html"`; texts are escaped."""
    return environment().get_template(template).render(values)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, and what they can call."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_llm", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters["value_text"] = value_text
    return made
