"""Cells in a folder: whole or not at all, found again, and never mixed with others."""

import json

import pytest

from blitzgw.sim.evaluation import store as module
from blitzgw.sim.evaluation.store import OtherSettings, Store, read_record, write_record
from tests.sim.evaluation_kit import record

SETTINGS = {"factor": 0.6, "window": (540, 800)}


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_record_comes_back_as_it_was(tmp_path, name):
    made = record()
    write_record(tmp_path / name, made)
    assert read_record(tmp_path / name) == made
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_folder_goes_on_where_it_stopped(tmp_path):
    first = Store(tmp_path / "out")
    first.begin(SETTINGS)
    first.put(record("stop+disk", 3))
    first.tell({"seeds": [1, 2, 3]})
    again = Store(tmp_path / "out")
    again.begin(SETTINGS)
    assert again.get("stop+disk", 3) == record("stop+disk", 3)
    assert again.get("stop+disk", 4) is None
    assert [one.seed for one in again.records()] == [3]
    assert again.about()["seeds"] == [1, 2, 3]


def test_cells_of_other_settings_are_refused_by_name(tmp_path):
    made = Store(tmp_path)
    made.begin(SETTINGS)
    with pytest.raises(OtherSettings, match=r"factor: 0\.6, not 0\.7"):
        made.begin({**SETTINGS, "factor": 0.7})
    made.begin(SETTINGS)


def test_what_cannot_be_read_is_not_there(tmp_path):
    made = Store(tmp_path)
    made.begin(SETTINGS)
    for seed, content in enumerate([b"", b"\x1f\x8b\x08\x00cut", b"{}"]):
        made.file("live", seed).write_bytes(content)
        assert made.get("live", seed) is None
        with pytest.raises(ValueError, match="is no record"):
            read_record(made.file("live", seed))
    made.put(record("live", 7))
    assert [one.seed for one in made.records()] == [7]
    for damaged in ("{", "[]", ""):
        (tmp_path / "about.json").write_text(damaged)
        with pytest.raises(OtherSettings, match="is damaged"):
            made.begin(SETTINGS)


def test_what_was_void_is_kept_beside_and_counts_no_more(tmp_path):
    made = Store(tmp_path)
    made.begin(SETTINGS)
    made.set_aside("live", 1)
    for slower in (1.0, 2.0, 3.0):
        made.set_aside("live", 1)
        made.put(record("live", 1, slower))
    names = {file.name for file in (tmp_path / "cells").iterdir()}
    assert names == {"live-1.json.gz", "live-1.void-1.json.gz", "live-1.void-2.json.gz"}
    assert [*made.records()] == [record("live", 1, 3.0)]
    assert read_record(tmp_path / "cells/live-1.void-2.json.gz") == record("live", 1, 2.0)


def test_a_full_disk_leaves_the_former_record(tmp_path, monkeypatch):
    made = Store(tmp_path)
    made.begin(SETTINGS)
    made.put(record())

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        made.put(record(slower=2.0))
    assert made.get("live-zigzag", 1) == record()
    assert [file.name for file in (tmp_path / "cells").iterdir()] == ["live-zigzag-1.json.gz"]


def test_names_stay_within_their_folder(tmp_path):
    made = Store(tmp_path)
    assert made.file("../../x y", 1).parent == tmp_path / "cells"
    assert made.file("stop+disk-300", 2).name == "stop+disk-300-2.json.gz"


def test_settings_are_compared_as_they_are_written(tmp_path):
    made = Store(tmp_path)
    made.begin(SETTINGS)
    assert json.loads((tmp_path / "about.json").read_text())["settings"]["window"] == [540, 800]
    made.begin({"factor": 0.6, "window": [540, 800]})
