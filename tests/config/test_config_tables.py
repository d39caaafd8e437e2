"""Tables by themselves: what a cell may hold, and what a mistake says."""

import dataclasses

import pytest

from blitzgw.config import HttpConfig, ModelConfig, NodeConfig, parse_size
from blitzgw.configfile.tables import Mistakes, read_array, read_table, read_toml
from blitzgw.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (0, 0),
        (123, 123),
        ("123", 123),
        ("7B", 7),
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("4GB", 4_000_000_000),
        ("16k", 16 << 10),
        ("1.5MiB", 3 << 19),
        ("2TiB", 2 << 40),
    ],
)
def test_a_size_is_bytes_or_text_with_a_unit(written, size_bytes):
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize("written", ["", "GiB", "4 Gob", "-1GiB", "1e3", "9" * 400, "٣MB", None])
def test_what_is_no_size_is_left_for_the_check(written):
    assert parse_size(written) == written


@pytest.mark.parametrize(
    ("kind", "key", "value", "right"),
    [
        (HttpConfig, "port", 65536, "a port, 0 to 65535"),
        (HttpConfig, "port", -1, "a port, 0 to 65535"),
        (HttpConfig, "port", "80", "a port, 0 to 65535"),
        (HttpConfig, "port", True, "a port, 0 to 65535"),
        (HttpConfig, "port", 10**30, "a port, 0 to 65535"),
        (HttpConfig, "host", "", "a name"),
        (HttpConfig, "host", " x", "a name"),
        (HttpConfig, "max_body_bytes", "many", '"4GiB"'),
        (HttpConfig, "max_body_bytes", -1, '"4GiB"'),
        (HttpConfig, "max_connections", 0, "1 or more"),
        (HttpConfig, "body_timeout_s", -0.1, "0 to 86400"),
        (HttpConfig, "body_timeout_s", float("nan"), "0 to 86400"),
        (HttpConfig, "body_timeout_s", float("inf"), "0 to 86400"),
        (HttpConfig, "public_routes", ["health"], 'begin with "/"'),
        (HttpConfig, "public_routes", "/health", "a list"),
        (NodeConfig, "dilation", 0, "above 0"),
        (NodeConfig, "log_level", "loud", "debug, info, warning, error"),
        (NodeConfig, "name", "a b", "letters, digits"),
        (NodeConfig, "name", "a\r\nb", "letters, digits"),
        (ModelConfig, "dtype", "int3", "auto, bfloat16, float16, float32"),
        (ModelConfig, "aliases", ["a", ""], "a list of names"),
        (ModelConfig, "aliases", "a", "a list of names"),
        (ModelConfig, "name", " ", "a name"),
        (ModelConfig, "name", "a\nb", "a name"),
        (ModelConfig, "name", ["a"], "a name"),
        (ModelConfig, "path", "", "a name"),
        (ModelConfig, "prefix_caching", 1, "true or false"),
        (ModelConfig, "max_model_len", 1.5, "0 or more"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_is_right_and_keeps_the_default(
    kind, key, value, right
):
    mistakes = Mistakes("x.toml")
    table = read_table(kind, {key: value}, "here", mistakes)
    [problem] = mistakes.problems
    assert problem.startswith(f"x.toml: here.{key}: ")
    assert right in problem
    assert table == kind()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bf16", "bfloat16"),
        ("half", "float16"),
        ("fp16", "float16"),
        ("float", "float32"),
        ("fp32", "float32"),
        ("float32", "float32"),
        ("auto", "auto"),
    ],
)
def test_dtypes_have_the_spellings_that_people_know(written, meant):
    mistakes = Mistakes("x.toml")
    assert read_table(ModelConfig, {"dtype": written}, "m", mistakes).dtype == meant
    assert mistakes.problems == []


def test_an_unknown_key_is_told_with_the_nearest_known_one():
    mistakes = Mistakes("x.toml")
    read_table(ModelConfig, {"max_model_length": 1, "zzz": 2}, "models[1]", mistakes)
    assert mistakes.problems[0] == (
        'x.toml: models[1].max_model_length: is not known; did you mean "max_model_len"?'
    )
    assert "known here: aliases, devices, digest, dtype" in mistakes.problems[1]


def test_secrets_are_not_part_of_messages():
    mistakes = Mistakes("x.toml")
    http = read_table(HttpConfig, {"api_keys": ["open sesame"]}, "http", mistakes)
    assert "sesame" not in mistakes.problems[0]
    assert "sesame" not in repr(dataclasses.replace(http, api_keys=("sesame",)))


def test_an_empty_array_of_tables_is_none_of_them():
    mistakes = Mistakes("x.toml")
    assert read_array(ModelConfig, [], "models", mistakes) == []
    assert read_array(ModelConfig, None, "models", mistakes) == [ModelConfig()]
    assert mistakes.problems == []


@pytest.mark.parametrize("tables", [{}, "x", 3])
def test_an_array_of_tables_must_be_one(tables):
    mistakes = Mistakes("x.toml")
    assert read_array(ModelConfig, tables, "models", mistakes) == [ModelConfig()]
    assert "[[models]]" in mistakes.problems[0]


def test_a_section_must_be_a_table():
    mistakes = Mistakes("x.toml")
    read_table(NodeConfig, 3, "node", mistakes)
    assert mistakes.problems == ["x.toml: node: 3 is not a table; write it as [node]"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = 1\nb = = 2\n", "at line 2"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"a = '\xff'", "byte 5 is not UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_is_told_with_its_place(tmp_path, content, says):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert says in problem


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "nowhere.toml")
