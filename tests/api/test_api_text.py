"""Detokenising, stop strings and templates against their references."""

import asyncio
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models

from blitzgw.api.choice import Choice
from blitzgw.api.detokenizer import Detokenizer, build_table
from blitzgw.api.encoding import FAST_INLINE_CHARS
from blitzgw.api.sampling import Stopping
from blitzgw.api.stops import StopMatcher
from blitzgw.api.template import ChatTemplate
from blitzgw.api.text import TextModel
from blitzgw.core.model import TextSpec
from blitzgw.core.request import FinishReason, TokenEvent
from blitzgw.errors import CheckpointError, InvalidRequest
from blitzgw.weights.info import open_checkpoint
from blitzgw.weights.tokens import MAX_TOKENS, DecoderRules, read_rules, read_tokens


def streamed(table, ids, skip, cuts, at_start=True):
    detokenizer = Detokenizer(table, skip, at_start)
    parts, start = [], 0
    for stop in [*sorted(cut for cut in cuts if cut < len(ids)), len(ids)]:
        parts.append(detokenizer.feed(ids[start:stop]))
        start = stop
    return [*parts, detokenizer.flush()]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_byte_level_streams_what_tokenizers_decodes(byte_text, data):
    size = byte_text.vocabulary.tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 20), max_size=60))
    skip = data.draw(st.booleans())
    cuts = data.draw(st.sets(st.integers(1, 60)))
    expected = byte_text.vocabulary.tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(streamed(byte_text.table, ids, skip, cuts)) == expected
    assert byte_text.decode(ids, skip_special_tokens=skip) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_characters_are_never_split(byte_text, text):
    ids = byte_text.encode_now(text, False)
    parts = streamed(byte_text.table, ids, True, set(range(200)))
    assert "".join(parts) == byte_text.vocabulary.tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(parts)


def runs_are_valid(tokenizer, ids, skip):
    """Tell whether each run of byte tokens is UTF-8: elsewhere whole runs become U+FFFD."""
    run = bytearray()
    for token in [*(tokenizer.id_to_token(i) for i in ids), None]:
        if skip and token in ("<unk>", "<s>", "</s>"):
            continue
        if token is not None and token.startswith("<0x"):
            run.append(int(token[3:5], 16))
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return False
        run.clear()
    return True


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_sentencepiece_streams_what_tokenizers_decodes(sp_text, data):
    tokenizer = sp_text.vocabulary.tokenizer
    char = st.sampled_from("é世😀\nß").map(
        lambda c: [tokenizer.token_to_id(f"<0x{b:02X}>") for b in c.encode()]
    )
    word = st.integers(259, tokenizer.get_vocab_size() - 1).map(lambda i: [i])
    anything = st.integers(0, tokenizer.get_vocab_size() - 1).map(lambda i: [i])
    groups = data.draw(st.lists(st.one_of(char, word, anything), max_size=20))
    ids = [i for group in groups for i in group]
    skip = data.draw(st.booleans())
    text = "".join(streamed(sp_text.table, ids, skip, data.draw(st.sets(st.integers(1, 60)))))
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    if runs_are_valid(tokenizer, ids, skip):
        assert text == expected
    else:
        assert text.replace("\ufffd", "") != "" or set(expected) <= {"\ufffd"}


def test_generated_text_keeps_the_space_after_a_prompt(sp_text):
    token = sp_text.vocabulary.tokenizer.token_to_id("▁the")
    detokenizer = sp_text.detokenizer(skip_special_tokens=True)
    assert detokenizer.feed([token]) == " the"


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Sequence", "decoders": []},
        {
            "type": "Sequence",
            "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        {"type": "Replace", "pattern": {"Regex": "x"}, "content": " "},
    ],
)
def test_other_decoders_are_refused(decoder):
    with pytest.raises(CheckpointError):
        read_rules(decoder)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    bad = tmp_path / "tokenizer.json"
    for content in (None, b"{}", b"\xff", b"[]"):
        if content is not None:
            bad.write_bytes(content)
        with pytest.raises(CheckpointError):
            TextModel(TextSpec(str(bad), None, "", ""))


def test_token_ids_without_end_are_refused():
    for vocabulary, size in (({"a": 1 << 40}, 0), ({"a": 0}, MAX_TOKENS + 1)):
        with pytest.raises(CheckpointError, match="token ids"):
            build_table(vocabulary, frozenset(), DecoderRules(byte_level=True), size)
    assert len(build_table({"a": 0}, frozenset(), DecoderRules(), 10).raw) == 10


# -- stop strings ---------------------------------------------------------------------------------


def whole_text_rule(text, stops):
    """The reference: the first end of any match; of those that end there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


ALPHABET = st.text("ab", min_size=1, max_size=5)


@settings(max_examples=600, deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(ALPHABET, min_size=1, max_size=4, unique=True),
    include=st.booleans(),
)
def test_stop_strings_do_not_depend_on_token_borders(pieces, stops, include):
    expected, stop = whole_text_rule("".join(pieces), stops)
    matcher = StopMatcher(tuple(stops), include)
    sent, fed, found = "", "", None
    for piece in pieces:
        text, found = matcher.feed(piece)
        sent += text
        fed += piece
        if found is not None:
            break
        held = fed[len(sent) :]
        assert fed == sent + held
        assert held == "" or any(s.startswith(held) and s != held for s in stops)
        longer = [fed[i:] for i in range(len(sent))]
        assert not any(s.startswith(part) for s in stops for part in longer)
    else:
        sent += matcher.flush()
    assert found == stop
    assert sent == expected + (stop if include and stop else "")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_choices_cut_by_token_index(byte_text, data):
    text = data.draw(st.text("abSTOP é😀", max_size=40))
    stops = tuple(data.draw(st.lists(st.text("STOP é😀", min_size=1, max_size=4), min_size=1,
                                     max_size=3, unique=True)))  # fmt: skip
    ids = byte_text.encode_now(text, False)
    expected, stop = whole_text_rule(text, stops)
    choice = Choice(0, byte_text, Stopping(stops, False, True))
    sent, position = "", 0
    while position < len(ids) and choice.finish is None:
        count = data.draw(st.integers(1, 4))
        last = position + count >= len(ids)
        event = TokenEvent(
            "r", 0, ids[position : position + count], finish=FinishReason.LENGTH if last else None
        )
        sent += choice.take(event)
        position += count
    if ids:
        assert sent == expected
        assert choice.stop_reason == stop
        assert choice.finish is (FinishReason.STOP if stop else FinishReason.LENGTH)
    if stop:
        whole = byte_text.vocabulary.tokenizer.decode
        counts = [
            n for n in range(len(ids) + 1)
            if whole_text_rule(whole(ids[:n]).rstrip("\ufffd"), stops)[1]
        ]  # fmt: skip
        assert choice.count == counts[0]


def test_a_stop_token_is_hidden_and_named(byte_text):
    choice = Choice(0, byte_text, Stopping((), False, True), stop_token_ids=(40,))
    event = TokenEvent("r", 0, [*byte_text.encode_now("Hi", False), 40], finish=FinishReason.STOP)
    assert choice.take(event) == "Hi"
    assert (choice.stop_reason, choice.count) == (40, len(event.tokens))


# -- templates ------------------------------------------------------------------------------------


def template(source):
    return ChatTemplate(source, "<s>", "</s>")


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}]


def test_templates_get_what_transformers_gives_them():
    rendered = template(
        "{{ bos_token }}{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ m|tojson }}{% generation %}x{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y')|length }}{{ flag }}"
    ).render(MESSAGES, extra={"flag": True})
    assert rendered == '<s>{"role": "user", "content": "a"}x4True'


def test_templates_refuse_with_their_own_words():
    with pytest.raises(InvalidRequest, match="no system") as caught:
        template("{{ raise_exception('no system') }}").render(MESSAGES)
    assert caught.value.param == "messages"
    for source in ("{{ messages[9].content + 'x' }}", "{{ 1 + 'x' }}", "{{ ''.__class__.mro() }}",
                   "{{ messages.append(1) }}"):  # fmt: skip
        with pytest.raises(InvalidRequest):
            template(source).render(MESSAGES)
    with pytest.raises(CheckpointError):
        template("{% for %}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "[a][b "),
        ("{% for m in messages %}[{{ m.content|trim }}]{% endfor %}", "[a][b"),
    ],
)
def test_a_final_message_is_continued(source, expected):
    assert template(source).render(MESSAGES, continue_final_message=True) == expected
    with pytest.raises(InvalidRequest):
        template("nothing").render(MESSAGES, continue_final_message=True)


HUGE = "{{ 'x'|center(1000000000) }}"
DEEP = "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"
NESTED = "{% for a in b %}" * 30 + "{% endfor %}" * 30


@pytest.mark.parametrize("source", [DEEP, NESTED, "{{ " + "9" * 5000 + " }}", "{% for %}", "{{"])
def test_whatever_compiling_runs_into_is_an_error_of_the_checkpoint(source):
    with pytest.raises(CheckpointError, match="does not compile"):
        template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ (9**(9**7)) % 7 }}",
        "{% set x = (9**(9**7)) % 7 %}",
        "{% if 'x' * 10000000000 %}{% endif %}",
        HUGE,
        HUGE.replace("{{", "{% set x =").replace("}}", "%}"),
        "{% autoescape 'x'|center(1000000000) %}{% endautoescape %}",
    ],
)
def test_compiling_computes_nothing(source):
    began = time.process_time()
    template(source)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "expression",
    ["9**(9**7)", "(-9)**(9**7)", "(2**4000) * (2**4000)", "'x' * 10000000000", "9999999 * [0, 1]",
     "(1, 2) * 9999999", "'ab' * (1024 * 1024)"],
)  # fmt: skip
def test_numbers_and_repetitions_are_bounded(expression):
    with pytest.raises(InvalidRequest, match="too l"):
        template("{{ (" + expression + ")|length }}").render(MESSAGES)


@pytest.mark.parametrize(
    "expression",
    ["2**10", "2**-1", "2.5**3", "(-2)**3", "2**0.5", "2**0", "True * 7", "6 * 7", "2.5 * 4",
     "'ab' * 3", "3 * 'ab'", "[1, 2] * 2", "'ab' * -1", "'ab' * 0", "'-' * (1024 * 1024)",
     "'a' + 'b' * 2 ~ 1", "7 % 3", "'%05d' % 7", "7 // 2"],
)  # fmt: skip
def test_bounded_operators_compute_what_they_always_did(expression):
    expected = ImmutableSandboxedEnvironment().from_string("{{ " + expression + " }}").render()
    assert template("{{ " + expression + " }}").render(MESSAGES) == expected


def test_autoescape_is_decided_when_it_is_rendered():
    source = "{% autoescape X %}{{ messages[0].content ~ '<' }}{% endautoescape %}<"
    for how in ("true", "false", "messages|length > 1", "messages|length > 5"):
        text = source.replace("X", how)
        expected = ImmutableSandboxedEnvironment().from_string(text).render(messages=MESSAGES)
        assert template(text).render(MESSAGES) == expected


# -- tokenising -----------------------------------------------------------------------------------


async def test_long_texts_leave_the_event_loop_free(byte_text):
    words = random.Random(1).choices(["fox", "Köln", "hello", "12:30"], k=200_000)
    text = " ".join(words)
    assert len(text) > FAST_INLINE_CHARS
    longest, last = 0.0, time.perf_counter()

    async def watch():
        nonlocal longest, last
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(watch())
        started = time.perf_counter()
        ids = await byte_text.encode(text, add_special_tokens=False)
        took = time.perf_counter() - started
        watcher.cancel()
    assert byte_text.decode(ids, skip_special_tokens=False) == text
    assert longest < took / 2


def test_json_of_the_tokenizer_has_no_limits_left(byte_text):
    document = json.loads(byte_text.vocabulary.tokenizer.to_str())
    assert document["truncation"] is None
    assert document["padding"] is None


def test_smollm2_streams_what_tokenizers_decodes(smollm2):
    text = TextModel(open_checkpoint(smollm2).text(), 49152)
    rng = random.Random(3)
    for _ in range(300):
        ids = [rng.randrange(49152) for _ in range(rng.randrange(40))]
        for skip in (True, False):
            expected = text.vocabulary.tokenizer.decode(ids, skip_special_tokens=skip)
            assert "".join(streamed(text.table, ids, skip, set(range(40)))) == expected
    prompt = text.template.render([{"role": "user", "content": "Hello"}])
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_bytes_of_tokens_are_read_without_a_tokenizer(byte_text, sp_text, tmp_path, tools):
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁he", -1.0), ("llo", -2.0)], unk_id=0))
    unigram.decoder = decoders.Replace("▁", " ")
    unigram.add_special_tokens(["<unk>", "</s>"])
    for text in (byte_text, sp_text, tools.text_model(unigram, tmp_path, vocab=9)):
        tokens, special = read_tokens(text.vocabulary.path, len(text.table.raw))
        assert tokens == text.table.raw
        assert special == text.special
    assert tokens[1:4] == [b" he", b"llo", b"</s>"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"model":{}}',
        b'{"model":{"vocab":{"a":"b"}}}',
        b'{"model":{"vocab":{}}}',
    ],
)
def test_what_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_tokens(str(path), 10)
    with pytest.raises(CheckpointError):
        read_tokens(str(tmp_path / "absent.json"), 10)
