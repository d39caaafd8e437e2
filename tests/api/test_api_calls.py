"""Calls in answers: each dialect, whatever pieces a text comes in, and what only looks like one."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blitzgw.api.calls import CallParser, Delta
from blitzgw.api.dialects import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED

NAMES = frozenset({"f", "get_time", "get"})


def taken(dialect, pieces):
    """Return (content, calls, cut) and all deltas."""
    parser = CallParser(dialect, NAMES)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    content = "".join(d.text for d in deltas if d.call is None)
    calls = [[d.name, ""] for d in deltas if d.name is not None]
    assert [d.call for d in deltas if d.name is not None] == list(range(len(calls)))
    assert all(not d.text for d in deltas if d.name is not None)
    begun = -1
    for delta in deltas:
        if delta.name is not None:
            begun = delta.call
        elif delta.call is not None:
            assert delta.call == begun
            calls[begun][1] += delta.text
    assert parser.calls == len(calls)
    return content, [tuple(call) for call in calls], parser.cut


def whole(dialect, text):
    return taken(dialect, [text])


ARGS = '{"a": "}\\"{", "b": [1, {"c": null}], "ü": "世"}'
CALL = f'{{"name": "get_time", "arguments": {ARGS}}}'
TWO = [("get_time", ARGS), ("f", "{}")]


@pytest.mark.parametrize(("dialect", "text", "content", "calls"), [
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", TWO[:1]),
    (HERMES, f"Let me see.\n<tool_call>{CALL}</tool_call>\n", "Let me see.\n", TWO[:1]),
    (HERMES, f'\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "f", "arguments": {{}}}}'
     "\n</tool_call>", "", TWO),
    (HERMES, f"<tool_call>\n{CALL}", "", TWO[:1]),  # ended without its closer
    (HERMES, f"<tool_call>\n{CALL[:-1]}\n</tool_call> ok", " ok", TWO[:1]),  # a brace is missing
    (HERMES, f"<tool_call>{CALL}</tool_call> And so on", " And so on", TWO[:1]),
    (HERMES, f'<tool_call>{{"arguments": {ARGS}, "id": 5, "name": "get_time"}}</tool_call>',
     "", TWO[:1]),
    (HERMES, '<tool_call>{"type": "function", "x": [{"name": "no"}], "name": "f"}</tool_call>',
     "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "odd", "arguments": {}}</tool_call>', "", [("odd", "{}")]),
    (HERMES, f"<tool_call>{CALL}<tool_call>{CALL}", "", TWO[:1] * 2),
    (LLAMA, '{"name": "f", "parameters": {}}', "", [("f", "{}")]),
    (LLAMA, ' {"name":"f","arguments":{"x":1}} ', "", [("f", '{"x":1}')]),
    (LLAMA, '<|python_tag|>{"name": "other", "parameters": {}}', "", [("other", "{}")]),
    (LLAMA, f'{CALL}; {{"name": "f", "parameters": {{}}}}', "", TWO),
    (LLAMA, f'Sure <|python_tag|>{CALL}', "Sure ", TWO[:1]),
    (MISTRAL, f"[TOOL_CALLS] [{CALL}]", "", TWO[:1]),
    (MISTRAL, f'[TOOL_CALLS][{CALL}, {{"name": "f", "arguments": {{}}, "id": "abcdefghi"}}]', "",
     TWO),
    (MISTRAL, f"I ask.[TOOL_CALLS]{CALL}", "I ask.", TWO[:1]),
    (MISTRAL_NAMED, f"[TOOL_CALLS]get_time[ARGS]{ARGS}[TOOL_CALLS]f[ARGS]{{}}", "", TWO),
    (MISTRAL_NAMED, f"[TOOL_CALLS]get_time[CALL_ID]abc123def[ARGS]{ARGS}", "", TWO[:1]),
    (MISTRAL_NAMED, f"Hm. [TOOL_CALLS] get_time{ARGS} ", "Hm. ", TWO[:1]),
])  # fmt: skip
def test_calls_of_each_dialect(dialect, text, content, calls):
    assert whole(dialect, text) == (content, calls, False)
    assert taken(dialect, text) == (content, calls, False)  # character by character


@pytest.mark.parametrize(("dialect", "text"), [
    (HERMES, ""),
    (HERMES, " \n"),
    (HERMES, "Just text, 1 < 2 <tool <tool_cal"),
    (HERMES, "<tool_call> I do not know"),
    (HERMES, '<tool_call>\n{"name": f, "arguments": {}}\n</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "argum'),
    (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"x": 1}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "' + "f" * 300),
    (HERMES, "</tool_call>"),
    (LLAMA, '{"city": "Paris", "name": "f"}'),
    (LLAMA, '{"name": "Alice", "parameters": {}}'),
    (LLAMA, '{"name": "ge"}'),
    (LLAMA, 'Here: {"name": "f", "parameters": {}}'),
    (LLAMA, '<|python_tag|>print(1)'),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, "[TOOL_CALLS] []"),
    (MISTRAL, "[TOOL_CALLS][[]]"),
    (MISTRAL, "[1, 2] [TOOL"),
    (MISTRAL_NAMED, "[TOOL_CALLS]I will not call"),
    (MISTRAL_NAMED, "[TOOL_CALLS]f[WHAT]{}"),
    (MISTRAL_NAMED, "[TOOL_CALLS]" + "f" * 200 + "[ARGS]{}"),
])  # fmt: skip
def test_what_is_no_call_is_text_to_the_letter(dialect, text):
    assert whole(dialect, text) == (text, [], False)
    assert taken(dialect, text) == (text, [], False)


@pytest.mark.parametrize(("dialect", "text", "begun"), [
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1, "x', '{"a": [1, "x'),
    (LLAMA, '{"name": "f", "parameters": {', "{"),
    (MISTRAL_NAMED, '[TOOL_CALLS]f[ARGS]{"a": {}', '{"a": {}'),
])  # fmt: skip
def test_a_call_that_is_cut_is_known_as_such(dialect, text, begun):
    assert whole(dialect, text) == ("", [("f", begun)], True)


def test_only_what_may_begin_a_call_is_held_back():
    parser = CallParser(HERMES, NAMES)
    assert parser.feed("Well <b> ") == [Delta(None, "Well <b> ")]
    assert parser.feed("and <tool") == [Delta(None, "and ")]
    assert parser.feed("s>") == [Delta(None, "<tools>")]
    assert parser.feed("<tool_call>\n") == []
    assert parser.feed('{"name": "f", "argu') == []
    assert parser.feed('ments": {') == [Delta(0, "", "f"), Delta(0, "{")]
    assert parser.feed('"a": "x') == [Delta(0, '"a": "x')]
    assert parser.feed('"}}\n</tool_') == [Delta(0, '"}')]
    assert parser.feed("call>") == []
    assert parser.feed("!") == [Delta(None, "!")]
    assert parser.finish() == []


SCRAPS = st.sampled_from([
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[",
    "]", "{", "}", '"', "\\", ",", ":", ";", " ", "\n", "name", "arguments", "parameters", "f",
    "1", "世", '{"name": "f", ', '"arguments": {',
    '"a": 1}',
    '{"name": "get_time", "arguments": {"x": "é"}}',
    "get_time[ARGS]{}", "text ", "<", "<tool_",
])  # fmt: skip


def scraps(text):
    """Return the text without white space and separators, which calls may be parted by."""
    return "".join(text.split())


@settings(max_examples=300, deadline=None)
@given(
    dialect=st.sampled_from([HERMES, LLAMA, MISTRAL, MISTRAL_NAMED]),
    parts=st.lists(SCRAPS, max_size=25),
    data=st.data(),
)
@example(
    dialect=HERMES, parts=["<tool_call>", '{"name": "f", ', '"arguments": {', "}", "text "],
    data=None,
)  # fmt: skip
@example(dialect=MISTRAL, parts=["[TOOL_CALLS]", "name", '{"name": "f", ', "]"], data=None)
def test_pieces_do_not_matter_and_nothing_is_lost(dialect, parts, data):
    text = "".join(parts)
    known = whole(dialect, text)
    assert taken(dialect, text) == known
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
        edges = [0, *cuts, len(text)]
        assert taken(dialect, [text[i:j] for i, j in pairwise(edges)]) == known
    content, calls, cut = known
    if not calls:
        assert content == text
    for i, (name, arguments) in enumerate(calls):
        assert name in text
        assert arguments == "{}" or arguments in text
        assert arguments.count("{") >= arguments.count("}") or '"' in arguments
        if not cut or i < len(calls) - 1:
            assert arguments.endswith("}")
    position = 0
    for char in scraps(content):  # content is what is left of the text, in its order
        position = text.index(char, position) + 1


@settings(max_examples=100, deadline=None)
@given(
    dialect=st.sampled_from([HERMES, LLAMA, MISTRAL, MISTRAL_NAMED]),
    made=st.lists(
        st.tuples(
            st.sampled_from(sorted(NAMES)),
            st.dictionaries(
                st.text(max_size=4),
                st.recursive(
                    st.none() | st.integers() | st.text(max_size=6),
                    lambda inner: (
                        st.lists(inner, max_size=3)
                        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
                    ),
                    max_leaves=6,
                ),
                max_size=3,
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    size=st.integers(1, 9),
)
def test_calls_as_models_write_them_come_back_exactly(dialect, made, size):
    calls = [(name, json.dumps(args, ensure_ascii=plain)) for name, args, plain in made]
    objects = [f'{{"name": "{name}", "arguments": {args}}}' for name, args in calls]
    text = {
        HERMES: "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects),
        LLAMA: "; ".join(objects),
        MISTRAL: "[TOOL_CALLS] [" + ", ".join(objects) + "]",
        MISTRAL_NAMED: "".join(f"[TOOL_CALLS]{name}[ARGS]{args}" for name, args in calls),
    }[dialect]
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert taken(dialect, pieces) == ("", calls, False)
