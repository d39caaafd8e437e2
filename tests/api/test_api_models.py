"""The table of models: names, and those whose text is on its way."""

import asyncio

import pytest

from blitzgw.api import models
from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.errors import InvalidRequest, Unavailable, UnknownModel


def entry(name, *aliases):
    return ModelEntry(name, aliases, None, None, 0)


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
