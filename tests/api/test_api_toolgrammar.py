"""Grammars of forced calls: what they let through, over real tokens, and what they do not."""

import time

import llguidance
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from blitzgw.api.calls import CallParser
from blitzgw.api.dialects import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED
from blitzgw.api.grammars import choice_grammar, json_schema_grammar
from blitzgw.api.toolgrammar import MAX_CALLS, Callable, forced_calls
from blitzgw.errors import InvalidRequest

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/c"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"c": {"enum": ["Köln", "東京"]}},
}
FUNCTIONS = [
    Callable(
        "tools[0]", "get", {"type": "object", "properties": {}, "additionalProperties": False}
    ),
    Callable("tools[1]", "get_weather", CITY),
]
WORDS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]"]
KOELN = '{"city": "Köln", "days": 3}'


@pytest.fixture(scope="module", params=["special", "plain", "spelled"])
def vocabulary(request):
    """Return a tokenizer in which the words of calls are tokens, or not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    if request.param != "spelled":
        special = request.param == "special"
        tokenizer.add_tokens([AddedToken(word, special=special) for word in WORDS])
    return tokenizer


def accepts(vocabulary, dialect, text, single=False, form=""):
    """Tell whether a text is complete by the grammar."""
    tokens = {word: vocabulary.token_to_id(word) for word in WORDS}
    tokens = {word: token for word, token in tokens.items() if token is not None}
    grammar = forced_calls(FUNCTIONS, dialect, tokens, single, form)
    end = vocabulary.token_to_id("<eos>")
    tokenizer = llguidance.LLTokenizer(vocabulary.to_str(), eos_token=end)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.get_error()
    ids = vocabulary.encode(text, add_special_tokens=False).ids
    taken = matcher.try_consume_tokens(ids)
    return taken == len(ids) and matcher.is_accepting()


def written(dialect, calls):
    key = "parameters" if dialect is LLAMA else "arguments"
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    if dialect is HERMES:
        return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)
    if dialect is MISTRAL:
        return f"[TOOL_CALLS][{', '.join(objects)}]"
    if dialect is MISTRAL_NAMED:
        return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
    return "; ".join(objects)


def tool(i, **schema):
    return Callable(f"tools[{i}]", f"f{i}", schema)


TOO_MUCH = {
    "one": (
        [tool(0), tool(1, properties={f"p{i}": {"$ref": "#"} for i in range(2000)}), tool(2)],
        "tools: forcing their calls: grammar size",
    ),
    "no schema": ([tool(0), tool(1, properties={"a": {"type": 5}}), tool(2)], "tools[1]: type"),
    "nothing satisfies it": (
        [tool(5, properties={"a": False}, required=["a"])], "tools[5]: Unsatisfiable schema"
    ),
    "all together": (
        [tool(i, properties={f"{j}": {"maxLength": 9 * i + j} for j in range(9)})
         for i in range(100)],
        "tools: forcing their calls: grammar size",
    ),
    "multiples": ([tool(i, properties={"a": {"multipleOf": 97 + i}}) for i in range(3)], "tools: "),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
@pytest.mark.parametrize("dialect", [HERMES, MISTRAL_NAMED], ids=lambda dialect: dialect.name)
def test_what_costs_too_much_is_refused_before_a_worker_sees_it(dialect, name):
    """Each schema may do, and all of them together not."""
    functions, told = TOO_MUCH[name]
    began = time.process_time()
    with pytest.raises(InvalidRequest) as error:
        forced_calls(functions, dialect, {"<tool_call>": 5, "[ARGS]": 6}, single=False)
    assert error.value.message.startswith(told)
    assert "arguments_" not in error.value.message
    assert error.value.param == "tools"
    assert time.process_time() - began < 2.0


DIALECTS = [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_what_is_forced_is_what_is_read(vocabulary, dialect):
    one, two = [("get_weather", KOELN)], [("get", "{}"), ("get_weather", KOELN)]
    many = dialect is not LLAMA
    for calls, good in ((one, True), (two, many), (two[:1] * MAX_CALLS, many),
                        (two[:1] * (MAX_CALLS + 1), False)):  # fmt: skip
        text = written(dialect, calls)
        assert accepts(vocabulary, dialect, text) == good
        parser = CallParser(dialect, frozenset({"get", "get_weather"}))
        deltas = parser.feed(text) + parser.finish()
        assert [d.name for d in deltas if d.name] == [name for name, _ in calls]
        assert "".join(d.text for d in deltas) == "".join(arguments for _, arguments in calls)
    assert accepts(vocabulary, dialect, written(dialect, one), single=True)
    assert not accepts(vocabulary, dialect, written(dialect, two), single=True)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("call", [
    ("unknown", "{}"),
    ("get", '{"x": 1}'),
    ("get_weather", "{}"),
    ("get_weather", '{"city": "Paris"}'),
    ("get_weather", '{"city": "Köln"'),
    ("get_weather", '{"city":  "Köln"}'),
])  # fmt: skip
def test_other_calls_are_shut_out(vocabulary, dialect, call):
    assert not accepts(vocabulary, dialect, written(dialect, [call]))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_text_is_shut_out(vocabulary, dialect):
    call = written(dialect, [("get", "{}")])
    for text in ("", "Well", f"Well {call}", f"{call} Well"):
        assert not accepts(vocabulary, dialect, text)


@pytest.mark.parametrize(
    "dialect", [HERMES, MISTRAL, MISTRAL_NAMED], ids=lambda dialect: dialect.name
)
@pytest.mark.parametrize("form", [
    json_schema_grammar({"properties": {"é": {"type": "integer"}}, "required": ["é"]}),
    choice_grammar(['{"é": 1}']),
], ids=["schema", "choice"])  # fmt: skip
def test_what_is_no_call_has_the_form_that_was_asked_for(vocabulary, dialect, form):
    calls = written(dialect, [("get_weather", KOELN)])
    for text, good in ((calls, True), ('{"é": 1}', True), ("{}", False), ("Well", False)):
        assert accepts(vocabulary, dialect, text, form=form) == good
