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

from blitzgw.core.rumours import Rumour, Update
from blitzgw.core.view import (
    ClusterView,
    DeviceFacts,
    Fact,
    InstanceFacts,
    LoadFacts,
    ModelFacts,
    NodeFacts,
    NodeView,
)
from blitzgw.errors import ProtocolError
from blitzgw.wire import decode_fact

log = logging.getLogger(__name__)


def key_of(fact: Fact) -> str:
    """Return the key of a fact's entry: kind, slash, and what it is about."""
    match fact:
        case NodeFacts():
            return "node"
        case DeviceFacts(id=name):
            return f"device/{name}"
        case ModelFacts(name=name):
            return f"model/{name}"
        case InstanceFacts(id=name):
            return f"instance/{name}"
        case LoadFacts(instance=name):
            return f"load/{name}"


@dataclass(slots=True)
class _Books:
    """One node: who it is, and its facts by kind and name."""

    member: Rumour
    heard_s: float
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    view: NodeView | None = None

    def freeze(self) -> NodeView:
        if self.view is None:
            of = self.facts.get
            member = self.member
            self.view = NodeView(
                boot=member.boot,
                name=member.name,
                host=member.host,
                port=member.port,
                status=member.status,
                started_s=member.started_s,
                facts=of("node", {}).get(""),
                devices=MappingProxyType(dict(of("device", {}))),
                models=MappingProxyType(dict(of("model", {}))),
                instances=MappingProxyType(dict(of("instance", {}))),
                loads=MappingProxyType(dict(of("load", {}))),
                heard_s=self.heard_s,
            )
        return self.view


class Directory:
    """All members' facts. Times are seconds of the injected clock."""

    def __init__(self, me: Rumour, now: float) -> None:
        self._local = me.boot
        self._books = {me.boot: _Books(me, now)}
        self._early: dict[str, list[Update]] = {}
        self._view: ClusterView | None = None
        self.undecodable = 0

    def view(self) -> ClusterView:
        """Return the present picture."""
        if self._view is None:
            nodes = {boot: books.freeze() for boot, books in self._books.items()}
            self._view = ClusterView(self._local, MappingProxyType(nodes))
        return self._view

    def member_changed(self, member: Rumour, now: float) -> None:
        """Take a member in, or its new status, name or address."""
        books = self._books.get(member.boot)
        if books is None:
            self._books[member.boot] = _Books(member, now)
            self.updated(self._early.pop(member.boot, ()), now)
        else:
            books.member = member
            self._touch(books, books.heard_s)
        self._view = None

    def member_forgotten(self, boot: str) -> None:
        """Drop a member and all of its facts."""
        self._books.pop(boot, None)
        self._early.pop(boot, None)
        self._view = None

    def updated(self, updates: Iterable[Update], now: float) -> None:
        """Take entries of other members. What does not decode is counted and left out."""
        for update in updates:
            books = self._books.get(update.boot)
            if books is None:  # who it is arrives in the same batch of changes, or never
                self._early.setdefault(update.boot, []).append(update)
                continue
            kind, _, name = update.key.partition("/")
            try:
                fact = None if update.value is None else decode_fact(update.key, update.value)
            except ProtocolError as error:
                self.undecodable += 1
                log.warning("entry_ignored boot=%s error=%s", update.boot, error)
                continue
            self._put(books, kind, name, fact, now)

    def published(self, facts: Mapping[str, Fact | None], now: float) -> None:
        """Take this node's own facts by key; None: gone."""
        for key, fact in facts.items():
            kind, _, name = key.partition("/")
            self._put(self._books[self._local], kind, name, fact, now)

    def loads_reported(self, boot: str, loads: Iterable[LoadFacts], now: float) -> None:
        """Take loads that came over a peer link, sooner than gossip brings them."""
        books = self._books.get(boot)
        if books is not None:
            for load in loads:
                self._put(books, "load", load.instance, load, now)

    def _put(self, books: _Books, kind: str, name: str, fact: Fact | None, now: float) -> None:
        facts = books.facts.setdefault(kind, {})
        if fact is None:
            facts.pop(name, None)
        else:
            facts[name] = fact
        self._touch(books, now)

    def _touch(self, books: _Books, heard_s: float) -> None:
        books.heard_s = heard_s
        books.view = None
        self._view = None


def changed(before: Mapping[str, Fact], after: Mapping[str, Fact]) -> dict[str, Fact | None]:
    """Return what must be published to get from one set of facts to another."""
    news: dict[str, Fact | None] = {
        key: fact for key, fact in after.items() if before.get(key) != fact
    }
    return news | dict.fromkeys(before.keys() - after.keys())


def without_loads(view: ClusterView) -> ClusterView:
    """Return a view that two moments share unless more than loads has changed."""
    bare = {boot: replace(node, loads={}, heard_s=0.0) for boot, node in view.nodes.items()}
    return ClusterView(view.local, bare)
