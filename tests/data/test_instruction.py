"""Which tokens of chats and texts are labels: against references written from the text's parts."""

import functools

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import data
from tests.data.chat_tokenizer import (
    BODY,
    CHAT,
    MARKED,
    PLAIN,
    SKY,
    SUM,
    SYSTEM,
    chat_tokenizer,
    rows_of,
)

pytestmark = pytest.mark.backend_free

TOKENIZERS = {name: chat_tokenizer(t) for name, t in {"plain": PLAIN, "marked": MARKED}.items()}


def with_template(template):
    return chat_tokenizer(BODY.replace("TURN", template))


def learnt(rows, tokenizer, **kwargs):
    """What counts in each row, as text, with `|` between labels that are no neighbours."""
    texts = []
    for _, labels in rows_of(rows, tokenizer, **kwargs):
        runs = [[]]
        for label in labels:
            if label != -100:
                runs[-1].append(label)
            elif runs[-1]:
                runs.append([])
        texts.append("|".join(tokenizer.decode(run) for run in runs if run))
    return texts


# Which answers count ------------------------------------------------------------------------------


def test_the_rules_in_their_order():
    rows = [{"messages": CHAT}]
    expected = "The sky is blue.<|im_end|>|2 + 2 = 4<|im_end|>"
    assert learnt(rows, TOKENIZERS["marked"]) == [expected]
    assert learnt(rows, TOKENIZERS["plain"]) == [expected.replace("<|im_end|>", "<|im_end|>\n")]
    # As Qwen's: only the last answer has its reasoning.
    last = with_template(
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>' }}"
    )
    with pytest.warns(UserWarning, match=r"In 1 of 2 rows only the last answer counts.*gener"):
        assert learnt([*rows, {"messages": SKY}], last) == [
            "<think>2 + 2 = 4<|im_end|>",
            "<think>The sky is blue.<|im_end|>",
        ]


def test_a_template_without_any_rule():
    neither = chat_tokenizer(
        PLAIN.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif")
    )
    neither.name_or_path = "models/neither"
    with pytest.raises(
        ValueError, match=r"'models/neither' does not tell.*'<think>'.*'2 \+ 2 ="
    ) as e:
        data.instruction([{"messages": CHAT}], neither, 64)
    assert "{% generation %}" in str(e.value) and PLAIN[:40] in str(e.value)
    assert "row 0" in e.value.__notes__[0]


def test_ids_are_those_of_apply_chat_template():
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.apply_chat_template(CHAT)["input_ids"]
        batch = data.instruction([{"messages": CHAT}], tokenizer, 1000, pad_to_multiple_of=1)
        assert next(iter(batch))[0].tolist() == [ids[:-1]]
        assert ids.count(tokenizer.bos_token_id) == 1


contents = st.text(st.sampled_from("ab \n2+=.é✓😀"), max_size=12)
turns = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)


@settings(max_examples=60)
@given(turns=turns, system=contents, rule=st.sampled_from(sorted(TOKENIZERS)))
def test_labels_equal_a_reference_by_offsets(turns, system, rule):
    tokenizer = TOKENIZERS[rule]
    messages = [{"role": "system", "content": system}]
    text, spans = f"<s><|im_start|>system\n{system}<|im_end|>\n", []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        start = len(text)
        text += f"{answer}<|im_end|>\n"
        spans.append((start, len(text) - (rule == "marked")))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    labels = [
        i if any(a < end <= b for a, b in spans) else -100
        for i, (_, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    loader = data.instruction([{"messages": messages}], tokenizer, 1000, pad_to_multiple_of=1)
    (found,) = loader
    assert found[0].tolist() == [ids[:-1]]
    assert found[1].tolist() == [labels[1:]]


@settings(max_examples=30)
@given(turns=turns)
def test_the_mark_of_transformers_is_ours(turns):
    """Where its mask is right: no answer ends in the first token."""
    tokenizer = TOKENIZERS["marked"]
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    ((_, labels),) = data.instruction(
        [{"messages": messages}], tokenizer, 1000, pad_to_multiple_of=1
    )
    assert (labels[0] != -100).tolist() == [bool(m) for m in theirs["assistant_masks"][1:]]


def test_an_answer_that_ends_in_the_first_token():
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{% endgeneration %}{% else %}{{ '<|im_start|>' + m['content'] }}{% endif %}{% endfor %}"
    )
    messages = [
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "What color"},
        {"role": "assistant", "content": " is"},
    ]
    assert learnt([{"messages": messages}], chat_tokenizer(template)) == [" is"]


def test_a_mark_without_the_end_of_the_turn():
    marked = (
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ eos_token }}"
    )
    expected = ["The sky is blue.</s>|2 + 2 = 4</s>"]
    assert learnt([{"messages": CHAT}], with_template(marked)) == expected


def test_a_token_on_the_boundary_belongs_to_the_answer():
    bare = chat_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    encode = functools.partial(bare, add_special_tokens=False)
    assert len(encode("2 + 2")["input_ids"]) < len(encode("2 + ")["input_ids"]) + 1
    messages = [{"role": "user", "content": "2 + "}, {"role": "assistant", "content": "2"}]
    assert learnt([{"messages": messages}], bare) == [" 2"]
    assert learnt([{"prompt": "2 + ", "completion": "2"}], bare) == [" 2</s>"]


def test_rows_of_messages_in_two_fields():
    row = {"prompt": [SYSTEM, *SKY, SUM[0]], "completion": SUM[1:]}
    assert learnt([row], TOKENIZERS["marked"]) == ["2 + 2 = 4<|im_end|>"]
    assert learnt([row], TOKENIZERS["plain"]) == ["2 + 2 = 4<|im_end|>\n"]


def test_what_a_template_is_given():
    tokenizer = chat_tokenizer("{{ tools }}{{ style }}" + PLAIN)
    tool = {"type": "function", "function": {"name": "add"}}
    row = {"messages": SKY, "tools": [tool], "chat_template_kwargs": {"style": "short"}}
    ((ids, _),) = rows_of([row], tokenizer)
    assert tokenizer.decode(ids).startswith(f"{[tool]}short<s>")
    assert learnt([row], tokenizer) == ["The sky is blue.<|im_end|>\n"]


def test_messages_that_a_template_cannot_write():
    parts = [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}, SUM[1]]
    with pytest.raises(ValueError, match=r"cannot write messages=.*'2 \+ 2\?'.*: TypeError") as e:
        data.instruction([{"messages": SUM}, {"messages": parts}], TOKENIZERS["plain"], 64)
    assert "row 1" in e.value.__notes__[0]
    strict = chat_tokenizer("{{ raise_exception('no system') }}")
    with pytest.raises(ValueError, match="TemplateError: no system"):
        data.instruction([{"messages": CHAT}], strict, 64)


# Rows of text -------------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["sky", "is", "2", "é✓"]), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=40)
@given(prompt=words, completion=words, adds_bos=st.booleans(), spells=st.booleans())
def test_prompts_and_completions(prompt, completion, adds_bos, spells):
    """The ids are those that a model reads in use, `tokenizer(prompt)`, and those of the answer."""
    tokenizer = BOS[adds_bos]
    before = tokenizer(prompt)["input_ids"]
    after = tokenizer(" " + completion, add_special_tokens=False)["input_ids"] + [1]
    row = {"prompt": "<s>" * spells * adds_bos + prompt, "completion": " " + completion}
    if spells:
        row["completion"] += "</s>"
    ((ids, labels),) = rows_of([row], tokenizer)
    assert ids == [*before, *after[:-1]]
    assert labels == [-100] * (len(before) - 1) + after


BOS = {adds: chat_tokenizer(adds_bos=adds) for adds in (False, True)}


def test_all_of_a_text_counts_and_nothing_is_added_twice():
    rows = [{"text": "The sky"}, {"text": "<s>The sky</s>"}]
    assert learnt(rows, BOS[True]) == ["The sky</s>"] * 2
    ids = BOS[False]("The sky")["input_ids"]
    assert rows_of(rows[:1], BOS[False]) == [(ids, [*ids[1:], 1])]


def test_our_own_tokenizer(word_tokenizer):
    rows = [{"prompt": "1 2", "completion": " 3"}, {"text": "4"}]
    one, two, three, four = word_tokenizer.encode("1 2 3 4")
    assert rows_of(rows, word_tokenizer) == [
        ([one, two, three], [-100, three, 2]),
        ([four], [2]),
    ]
    with pytest.raises(ValueError, match=r"must have a chat template.*a Tokenizer without one"):
        data.instruction([{"messages": SKY}], word_tokenizer, 8)


def test_a_slow_tokenizer():
    tokenizer = transformers.ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    assert learnt([{"messages": CHAT}], tokenizer) == ["The sky is blue.</s>|2 + 2 = 4</s>"]
    row = {"prompt": "é", "completion": "✓"}
    assert learnt([row, {"text": "abc"}], tokenizer) == ["✓</s>", "bc</s>"]
