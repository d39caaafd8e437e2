"""From what members publish to the frozen picture that deciders read.

Mutable books inside, an immutable `ClusterView` outside; nodes that have not changed between two
views are the same objects in both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from blitzgw.core.picture import Picture
from blitzgw.core.rumours import Rumour, Update
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    DeviceFacts,
    Fact,
    HostFacts,
    InstanceFacts,
    LoadFacts,
    ModelFacts,
    NodeFacts,
    NodeView,
    ScaleFacts,
    ScaleWish,
)
from blitzgw.errors import ProtocolError
from blitzgw.wire import decode_fact

log = logging.getLogger(__name__)


def key_of(fact: Fact) -> str:
    """Return the key of a fact's entry: kind, slash, and what it is about."""
    match fact:
        case NodeFacts():
            return "node"
        case HostFacts():
            return "host"
        case DeviceFacts(id=name):
            return f"device/{name}"
        case CopyFacts(weights=name):
            return f"copy/{name}"
        case ModelFacts(name=name):
            return f"model/{name}"
        case InstanceFacts(id=name):
            return f"instance/{name}"
        case LoadFacts(instance=name):
            return f"load/{name}"
        case ScaleWish(model=name):
            return f"wish/{name}"
        case ScaleFacts(model=name):
            return f"scale/{name}"


@dataclass(slots=True)
class _Books:
    """One node: who it is, and its facts by kind and name."""

    member: Rumour
    heard_s: float
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    frozen: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    view: NodeView | None = None

    def of(self, kind: str) -> Mapping[str, Any]:
        """Return the facts of a kind, by name: the same object until one of them has changed."""
        found = self.frozen.get(kind)
        if found is None:
            found = self.frozen[kind] = MappingProxyType(dict(self.facts.get(kind, {})))
        return found

    def freeze(self) -> NodeView:
        if self.view is None:
            of, member = self.of, self.member
            self.view = NodeView(
                boot=member.boot,
                name=member.name,
                host=member.host,
                port=member.port,
                status=member.status,
                started_s=member.started_s,
                facts=of("node").get(""),
                devices=of("device"),
                models=of("model"),
                instances=of("instance"),
                loads=of("load"),
                copies=of("copy"),
                wishes=of("wish"),
                scaling=of("scale"),
                host_facts=of("host").get(""),
                heard_s=self.heard_s,
            )
        return self.view


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch of entries has changed.

    `structural`: more than figures, which are loads, what machines have free, which weights lie
    where, and what owners tell of scaling.
    `loads` are the new ones of instances, by boot.
    """

    structural: bool
    loads: Mapping[str, list[LoadFacts]]


class Directory:
    """All members' facts. Times are seconds of the injected clock."""

    def __init__(self, me: Rumour, now: float) -> None:
        self._local = me.boot
        self._books = {me.boot: _Books(me, now)}
        self._early: dict[str, list[Update]] = {}
        self._picture = Picture()
        self._touched: dict[str, None] = {me.boot: None}
        self._view: ClusterView | None = None
        self.undecodable = 0
        """Entries ignored: such as do not decode, or are not about what their key says."""

    def view(self) -> ClusterView:
        """Return the present picture."""
        if self._view is None:
            found = ((boot, self._books.get(boot)) for boot in self._touched)
            self._picture = self._picture.after(
                {boot: books.freeze() if books is not None else None for boot, books in found}
            )
            self._touched.clear()
            self._view = ClusterView(self._local, self._picture.nodes, self._picture)
        return self._view

    def member_changed(self, member: Rumour, now: float) -> None:
        """Take a member in, or its new status, name or address."""
        books = self._books.get(member.boot)
        if books is None:
            self._books[member.boot] = books = _Books(member, now)
            self._touch(books, now)
            self.updated(self._early.pop(member.boot, ()), now)
        else:
            books.member = member
            self._touch(books, books.heard_s)

    def member_forgotten(self, boot: str) -> None:
        """Drop a member and all of its facts."""
        self._early.pop(boot, None)
        if self._books.pop(boot, None) is not None:
            self._touched[boot] = None
            self._view = None

    def updated(self, updates: Iterable[Update], now: float) -> Taken:
        """Take entries of other members. What is not as it should be is counted and left out."""
        structural = False
        loads: dict[str, list[LoadFacts]] = {}
        for update in updates:
            books = self._books.get(update.boot)
            if books is None:  # who it is arrives in the same batch of changes, or never
                self._early.setdefault(update.boot, []).append(update)
                continue
            try:
                fact = _fact(update)
            except ProtocolError as error:
                self.undecodable += 1
                log.warning("entry_ignored boot=%s error=%s", update.boot, error)
                continue
            if not isinstance(fact, LoadFacts):
                structural |= self._put(books, update.key, fact, now)
            elif self._put_load(books, fact, now):
                loads.setdefault(update.boot, []).append(fact)
        return Taken(structural, loads)

    def published(self, facts: Mapping[str, Fact | None], now: float) -> bool:
        """Take this node's own facts by key, None: gone; return whether it is structural."""
        books = self._books[self._local]
        structural = False
        for key, fact in facts.items():
            structural |= self._put(books, key, fact, now)
        return structural

    def loads_reported(self, boot: str, loads: Iterable[LoadFacts], now: float) -> list[LoadFacts]:
        """Take loads that came over a peer link, sooner than by gossip; return the new ones."""
        books = self._books.get(boot)
        if books is None:
            return []
        return [load for load in loads if self._put_load(books, load, now)]

    def _put_load(self, books: _Books, load: LoadFacts, now: float) -> bool:
        """Note a load, unless what is known is as new or newer; return whether it was noted."""
        known = books.facts.get("load", {}).get(load.instance)
        if known is not None and 0 < load.number <= known.number:
            return False
        self._put(books, key_of(load), load, now)
        return True

    def _put(self, books: _Books, key: str, fact: Fact | None, now: float) -> bool:
        """Note a fact, None: it is gone; return whether more than figures has changed."""
        kind, _, name = key.partition("/")
        facts = books.facts.setdefault(kind, {})
        before = facts.pop(name, None) if fact is None else facts.get(name)
        if fact is not None:
            facts[name] = fact
        books.frozen.pop(kind, None)
        self._touch(books, now)
        return _is_structural(before, fact)

    def _touch(self, books: _Books, heard_s: float) -> None:
        books.heard_s = heard_s
        books.view = self._view = None
        self._touched[books.member.boot] = None


def _fact(update: Update) -> Fact | None:
    """Return the fact of an entry, None where it is gone or of a later version of this software.

    Raises ProtocolError for what does not decode, and for what is about something else than the
    key says: it would stand under another one's name.
    """
    if update.value is None:
        return None
    fact: Fact | None = decode_fact(update.key, update.value)
    if fact is not None and key_of(fact) != update.key:
        raise ProtocolError(f"an entry {update.key[:80]!r} that is about {key_of(fact)[:80]!r}")
    return fact


def _is_structural(before: Fact | None, after: Fact | None) -> bool:
    if isinstance(before, InstanceFacts) and isinstance(after, InstanceFacts):
        return replace(before, layers_resident=after.layers_resident, blobs=after.blobs) != after
    figures = LoadFacts | HostFacts | CopyFacts | ScaleFacts
    return before != after and not isinstance(before or after, figures)


def changed(before: Mapping[str, Fact], after: Mapping[str, Fact]) -> dict[str, Fact | None]:
    """Return what must be published to get from one set of facts to another."""
    news: dict[str, Fact | None] = {
        key: fact for key, fact in after.items() if before.get(key) != fact
    }
    return news | dict.fromkeys(before.keys() - after.keys())
