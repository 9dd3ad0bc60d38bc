"""Where the answers stand in a chat that a tokenizer's chat template has written as text."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
SHOWN = 60

Span = tuple[int, int]


def common_length(one: Sequence, other: Sequence) -> int:
    """How long the beginning is in which both agree.

    >>> common_length("prompt", "proof")
    3
    """
    agree = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in agree)


class Row(NamedTuple):
    """A text, and where in it the answers are.

    Attributes:
        text: The text, of a chat with all that its template writes.
        answers: The first character of each answer, and the one behind its last.
        is_chat: Whether a template wrote the text. To other texts, the first and the last id are
            still to be added.
        only_last: Whether there are earlier answers, which cannot be told apart from the rest.
    """

    text: str
    answers: list[Span]
    is_chat: bool
    only_last: bool = False


class Chat:
    """Messages, as the chat template of a tokenizer writes them.

    Which characters are answers is found by the first of these rules that applies:

    1. The template marks them, by `{% generation %}` and `{% endgeneration %}`.
    2. The prefix rule: the text of the messages before an answer, with what asks for an answer
       (`add_generation_prompt=True`), is the beginning of the whole text, and so is the text up to
       the answer. What the second has beyond the first is the answer, its end of turn included.
       This must hold for all answers.
    3. The prefix rule for the last answer. Templates that leave the reasoning out of earlier
       answers need this.

    Args:
        messages: Dictionaries with `"role"` and `"content"`.
        tokenizer: A `transformers.PreTrainedTokenizerBase` with a chat template.
        settings: What else the template is given, such as `tools`.
    """

    def __init__(self, messages: list[dict], tokenizer, settings: dict[str, Any]):
        # A column of a table has None where a message lacks a field.
        self.messages = [{k: v for k, v in m.items() if v is not None} for m in messages]
        self.tokenizer, self.settings = tokenizer, settings
        self.template = tokenizer.get_chat_template(tools=settings.get("tools"))

    def row(self, first: int = 0) -> Row:
        """The text, and the answers among the messages from `first` on.

        Raises:
            ValueError: no rule finds them.
        """
        if MARK.search(self.template):
            text, marked = self.marked(len(self.messages))
            before = len(self.marked(first)[1]) if first else 0
            if len(marked) > before:
                return Row(text, marked[before:], True)
        text = self.written(len(self.messages))
        turns = [i for i in range(first, len(self.messages)) if self.is_answer(i)]
        found = [self.answer(i, text) for i in turns]
        if None not in found:
            return Row(text, found, True)
        if found[-1] is None:
            raise ValueError(self.not_found(turns[-1], text))
        return Row(text, found[-1:], True, only_last=True)

    def is_answer(self, turn: int) -> bool:
        """Whether the assistant wrote that message."""
        return self.messages[turn].get("role") == "assistant"

    def written(self, turns: int, asking: bool = False) -> str:
        """The text of the first `turns` messages, which may end by asking for an answer."""
        return self.tokenizer.apply_chat_template(
            self.messages[:turns], tokenize=False, add_generation_prompt=asking, **self.settings
        )

    def marked(self, turns: int) -> tuple[str, list[Span]]:
        """The text of the first `turns` messages, and what the template marks in it."""
        # `apply_chat_template` returns marks as a mask of tokens, which is wrong for an answer that
        # ends in the first token, and which slow tokenizers do not have.
        from transformers.utils.chat_template_utils import render_jinja_template

        (text,), (spans,) = render_jinja_template(
            conversations=[self.messages[:turns]],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **self.settings},
        )
        return text, [(start, end) for start, end in spans if start < end]

    def answer(self, turn: int, text: str) -> Span | None:
        """Where in `text` that message is, by the prefix rule; None where it does not hold."""
        try:
            prompt, answered = self.written(turn, asking=True), self.written(turn + 1)
        except (jinja2.TemplateError, ValueError):  # some templates want a certain order of roles
            return None
        holds = text.startswith(answered) and answered.startswith(prompt)
        return (len(prompt), len(answered)) if holds else None

    def not_found(self, turn: int, text: str) -> str:
        """The error where no rule finds the answers."""
        try:
            prompt = self.written(turn, asking=True)
            same = common_length(prompt, text)
            why = f"the prompt has {prompt[same:][:SHOWN]!r} where it has {text[same:][:SHOWN]!r}"
        except (jinja2.TemplateError, ValueError) as error:
            why = f"for the prompt alone, the template raises: {error}"
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return (
            f"The chat template of the tokenizer {name!r} does not tell which tokens are answers. "
            "No {% generation %} marks them, and not even before the last answer is the prompt, "
            f"written with add_generation_prompt=True, the beginning of the whole text: {why}. "
            "Write {% generation %} before and {% endgeneration %} behind what the assistant "
            "writes, its end of turn included, in tokenizer.chat_template, or give rows of "
            f"prompt and completion. The template begins: {self.template[:SHOWN]!r}"
        )
