"""Extensions of Griffe, which reads the docstrings for the pages of the API."""

import griffe


class Namesakes(griffe.Extension):
    """Finds a function that has the name of its module, such as `keras_llm.data.load`."""

    def on_module(self, *, mod, **kwargs):
        """Replaces the module by what is exported, once everything is read."""
        for name in mod.exports or ():
            member = mod.members.get(name)
            if member is not None and not member.is_alias and name in member.members:
                mod.set_member(name, member.members[name])


class KerasStyle(griffe.Extension):
    """Reads sections as Keras writes them: examples without indentation, and call arguments."""

    def on_object(self, *, obj, **kwargs):
        """Rewrites each docstring after it is read."""
        if obj.docstring:
            obj.docstring.value = google_style(obj.docstring.value)


def google_style(docstring):
    """The docstring with its examples indented."""
    lines, in_example = [], False
    for line in docstring.splitlines():
        if line == "Example:":
            in_example = True
            line = "Examples: Example:"
        elif line == "Call arguments:":
            in_example = False
            line = "Other arguments: Call arguments:"
        elif line.endswith(":") and line[:1].isupper():
            in_example = False
        elif in_example and not line and lines[-1].startswith("Examples:"):
            continue
        elif in_example and line:
            line = "    " + line
        lines.append(line)
    return "\n".join(lines)
