"""config.example.toml and the dataclasses tell the same."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from blitzgw.config import (
    ClusterConfig,
    DeviceEntry,
    HttpConfig,
    ModelConfig,
    NodeConfig,
    TransferConfig,
    parse_size,
)
from blitzgw.configfile.load import load

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
SECTIONS = {
    "node": NodeConfig,
    "http": HttpConfig,
    "cluster": ClusterConfig,
    "transfer": TransferConfig,
    "devices": DeviceEntry,
    "models": ModelConfig,
}


def plain(value):
    """What a default looks like in TOML."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("section", SECTIONS)
def test_each_knob_stands_in_the_example_at_its_default(section):
    document = tomllib.loads(EXAMPLE.read_text())
    table = document[section]
    if isinstance(table, list):
        [table] = table
    defaults = {
        field.name: plain(getattr(SECTIONS[section](), field.name))
        for field in dataclasses.fields(SECTIONS[section])
    }
    written = {k: parse_size(v) if k.endswith("_bytes") else v for k, v in table.items()}
    assert list(written) == list(defaults), "the same knobs, in the same order"
    assert written == defaults
    assert {k: type(v) for k, v in written.items()} == {k: type(v) for k, v in defaults.items()}


def test_the_example_has_no_other_sections():
    assert list(tomllib.loads(EXAMPLE.read_text())) == list(SECTIONS)


def test_each_knob_is_explained():
    lines = EXAMPLE.read_text().splitlines()
    knobs = [i for i, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert len(knobs) == sum(len(dataclasses.fields(kind)) for kind in SECTIONS.values())
    assert all(lines[i - 1].startswith("# ") for i in knobs)


def test_the_example_means_what_no_file_means():
    assert load(EXAMPLE) == load()
