"""Where Griffe, which reads the docstrings for the API's pages, would miss something."""

import griffe


class Namesakes(griffe.Extension):
    """What is exported from a module of its own name, such as `keras_llm.data.load`."""

    def on_module(self, *, mod, **kwargs):
        """Puts what is exported in the place of its module, once all is read."""
        for name in mod.exports or ():
            member = mod.members.get(name)
            if member is not None and not member.is_alias and name in member.members:
                mod.set_member(name, member.members[name])


class KerasStyle(griffe.Extension):
    """Examples are not indented there, and a layer has call arguments besides arguments."""

    def on_object(self, *, obj, **kwargs):
        """Rewrites a docstring, once it is read."""
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
