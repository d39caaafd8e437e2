"""Each system that is compared is a configuration that any operator could write."""

from collections.abc import Mapping

import pytest

from blitzgw.config import ModelConfig
from blitzgw.configfile.load import load
from blitzgw.errors import ConfigError
from blitzgw.sim.evaluation.ladder import SYSTEMS

NAMES = [
    "static-full",
    "static-mean",
    "stop+disk",
    "stop+host",
    "stop+star",
    "stop+chain",
    "pipeline",
    "live-best-effort",
    "live-zigzag",
    "oracle",
]


@pytest.fixture
def write(tmp_path):
    def written(settings: Mapping[str, object], transfer: str = ""):
        lines = [
            f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in settings.items()
        ]
        file = tmp_path / "blitzgw.toml"
        file.write_text(f"[transfer]\n{transfer}\n[[models]]\n" + "\n".join(lines))
        return file

    return written


def test_the_ladder_is_all_there_and_in_order():
    assert [name for name in SYSTEMS if name in NAMES] == NAMES
    assert all(system.name == name and system.says for name, system in SYSTEMS.items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_is_a_configuration(write, name):
    settings = SYSTEMS[name].settings
    [model] = load(write(settings)).models
    assert {key: getattr(model, key) for key in settings} == dict(settings)


def test_one_thing_differs_from_one_step_to_the_next():
    def knobs(name: str) -> dict[str, object]:
        return dict(SYSTEMS[name].settings)

    assert knobs("stop+chain") == knobs("stop+star") | {"strategy": "chain"}
    assert knobs("live-zigzag") == knobs("live-best-effort") | {"live": "zigzag"}
    assert knobs("pipeline") == knobs("live-zigzag") | {"live": "pipeline"}
    assert knobs("stop+disk-300") == knobs("stop+disk") | {"host_cache_s": 300.0}
    default = ModelConfig()
    assert knobs("live") == {key: getattr(default, key) for key in knobs("live")}


def test_what_is_kept_in_memory_is_told_to_owners_and_workers(write):
    config = load(write({"host_cache_s": 30, "host_copies": 4096}, 'max_host_rate = "540Mbit"'))
    [model] = config.models
    assert (model.scale_terms.host_cache_s, model.host_copies) == (30.0, 4096)
    assert config.transfer.max_host_rate == 67.5e6


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"live": "pipeline", "strategy": "chain"}, 'write "auto" or "binomial"'),
        ({"live": "pipeline", "strategy": "disk"}, 'write "auto" or "binomial"'),
        ({"strategy": "host", "host_copies": 0}, "host_copies = 0 keeps none"),
        ({"strategy": "memory"}, "disk-shards, disk, host"),
        ({"host_copies": 5000}, "a whole number, 0 to 4096"),
        ({"host_cache_s": -1}, "a number of seconds, 0 to 86400"),
    ],
)
def test_what_does_not_go_together_is_refused(write, settings, why):
    with pytest.raises(ConfigError, match=why):
        load(write(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"live": "pipeline", "strategy": "binomial"},
        {"strategy": "host", "host_copies": 0, "host_cache_s": 30},
        {"strategy": "host"},
    ],
)
def test_what_does_is_not(write, settings):
    load(write(settings))
