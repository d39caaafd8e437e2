"""The table of models: names, and those whose text is on its way."""

import asyncio
from itertools import permutations

import pytest

from blitzgw.api import models
from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.errors import InvalidRequest, Unavailable, UnknownModel


def entry(name, *aliases, since_s=0):
    return ModelEntry(name, aliases, None, None, 0, since_s=since_s)


def test_names_aliases_and_the_one_for_any():
    table = ModelTable([entry("a", "b"), entry("c", "*")])
    assert [table.lookup(name).name for name in ("a", "b", "c", "whatever", None)] == list("aaccc")
    assert [name for name, _ in table.names()] == ["a", "b", "c"]


def test_what_is_unknown_is_refused_with_what_is_known():
    table = ModelTable([entry("a"), entry("c")])
    with pytest.raises(UnknownModel, match="known models: a, c"):
        table.lookup("d")
    with pytest.raises(InvalidRequest, match="model is required"):
        table.lookup(None)


CLASHING = [
    entry("a", "b", "x", "y", since_s=1),  # one alias is another model's name
    entry("b", "x", "*", since_s=3),
    entry("c", "y", "*", since_s=2),
    entry("d", "z", since_s=2),
    entry("e", "z", "z", since_s=2),
]


def test_names_and_aliases_mean_the_same_in_any_order():
    for entries in permutations(CLASHING):
        table = ModelTable(entries)
        meant = {name: table.lookup(name).name for name in "abcdexyz"}
        assert "".join(meant.values()) == "abcdeaad"
        assert table.lookup("whatever").name == table.lookup(None).name == "c"
        assert {name: entry.name for name, entry in table.names()} == meant


def test_names_are_told_in_the_configured_order():
    table = ModelTable([entry("c", "y", "a", since_s=2), entry("a", "y", "x", since_s=1)])
    assert [(name, entry.name) for name, entry in table.names()] == [
        ("c", "c"), ("y", "a"), ("a", "a"), ("x", "a"),
    ]  # fmt: skip


def test_what_is_coming_is_not_caught_by_others_meanwhile():
    table = ModelTable()
    table.replace([entry("a", "*", "late", "b"), entry("b", "nick")], ["late", "nick", "b", "*"])
    for name in ("late", "nick"):
        with pytest.raises(Unavailable, match="is being fetched"):
            table.lookup(name)
    found = {name: table.lookup(name).name for name in ("a", "b", "other", None)}
    assert found == {"a": "a", "b": "b", "other": "a", None: "a"}


async def test_who_is_to_have_all_other_names_is_waited_for():
    table = ModelTable()
    table.replace([entry("a"), entry("b")], ["late", "*"])
    for name in ("other", None):
        with pytest.raises(Unavailable, match="is being fetched"):
            table.lookup(name)
    assert (await table.find("a")).name == "a"
    waiting = [asyncio.ensure_future(table.find(name)) for name in ("other", None)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    table.replace([*table.entries, entry("late", "*")])
    assert [(await task).name for task in waiting] == ["late", "late"]


async def test_a_model_that_is_on_its_way_is_waited_for():
    table = ModelTable([entry("a", "*")])
    table.replace(table.entries, coming=["late", "later"])
    waiting = asyncio.ensure_future(table.find("late"))
    await asyncio.sleep(0.01)
    table.replace(table.entries, coming=["late"])  # news of something else
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert (await table.find("other")).name == "a"
    table.replace([*table.entries, entry("late")])
    assert (await waiting).name == "late"


async def test_a_model_that_does_not_come_is_refused_for_now(monkeypatch):
    monkeypatch.setattr(models, "COMING_S", 0.02)
    table = ModelTable([entry("a")])
    table.replace(table.entries, coming=["late"])
    with pytest.raises(Unavailable, match="is being fetched") as refusal:
        await table.find("late")
    assert refusal.value.retry_after_s == 1.0
