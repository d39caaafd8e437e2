"""One node's part in the cluster: what it publishes, what it sees, which instances it routes to.

    devices ── their instances ──► Cluster ── all instances ──► router
                        facts │   ▲ members, facts, loads
                              ▼   │
                             Network ◄──► other nodes

A node without a cluster key is a cluster of one: everything here works, and nothing listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from blitzgw.api.services import VERSION, unix_time
from blitzgw.config import Config
from blitzgw.configfile.cluster import is_wildcard
from blitzgw.core.clock import Clock
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.rumours import Rumour, Status
from blitzgw.core.view import (
    ClusterView,
    Fact,
    LoadFacts,
    NodeFacts,
    RequestFacts,
)
from blitzgw.definitions import Definitions
from blitzgw.errors import PeerLost, ProtocolError
from blitzgw.gossip.crossing import News
from blitzgw.gossip.directory import Directory, changed, key_of
from blitzgw.gossip.events import MemberChanged, MemberForgotten, StateChanged
from blitzgw.network import Network
from blitzgw.placement import LoadedModel
from blitzgw.router.router import Router
from blitzgw.routes import Routes
from blitzgw.scheduler.shell import LocalInstance
from blitzgw.wire import decode_requests, encode_fact, encode_requests

log = logging.getLogger(__name__)

REFRESH_S = 0.05
"""Between two looks at what to publish: fresh enough for routing, rare enough to cost nothing."""

GOSSIP_LOAD_S = 1.0
"""Between two publications of loads by gossip, which takes them to everybody. Who uses an instance
hears of its load over the peer link at every refresh."""

SOFTWARE = {"blitzgw": VERSION, "layout": str(LAYOUT_VERSION)}
"""What a node tells of its own versions; those of its workers are with its devices."""

REQUESTS = "requests"
"""The name of the list of a node's requests among what peers can fetch."""

Facts = Callable[[], tuple[list[Fact], list[LoadFacts]]]
"""Returns what a node publishes of its devices: what seldom changes, and loads."""


class Cluster:
    """Joins devices, network and router of the process `boot`; implements `NetworkListener`."""

    def __init__(
        self,
        config: Config,
        boot: str,
        models: Sequence[LoadedModel],
        router: Router,
        clock: Clock,
        facts: Facts,
    ) -> None:
        self._config, self._router, self._clock, self._facts = config, router, clock, facts
        cluster = config.cluster
        self._me = Rumour(
            boot, config.node.name, cluster.host, cluster.port, unix_time(), 0, Status.ALIVE
        )
        self.directory = Directory(self._me, clock.now())
        self.network = Network(
            cluster,
            config.cluster_keys,
            self._me,
            router,
            self._content,
            self,
            clock,
            config.node.dilation,
        )
        self.definitions = Definitions(models, clock, self._fetch)
        self.routes = Routes(router, self.network, self.definitions, clock)
        self._published: dict[str, Fact] = {}
        self._loads: dict[str, Fact] = {}
        self._load_news: dict[str, Fact | None] = {}
        self._load_gossip_s = 0.0
        self._http = ""
        self._draining = False
        self._dirty = True
        self._task: asyncio.Task[None] | None = None

    @property
    def networked(self) -> bool:
        """Whether there may be other nodes."""
        return bool(self._config.cluster_keys)

    async def open(self, http_port: int) -> None:
        """Join the cluster; the API listens already. Raises BlitzError as `Network.open` does."""
        self.definitions.open(self._follow)
        await self.network.open()
        self._me = self.network.me
        self.directory.member_changed(self._me, self._clock.now())
        self._http = _url(self._config.http.host, self._me.host, http_port)
        self._refresh()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def view(self) -> ClusterView:
        """Return this node's picture of the cluster."""
        return self.directory.view()

    def local_up(self, port: LocalInstance, claim: int) -> None:
        """Serve an instance of a device of this node, at a claim of the device."""
        self.routes.local_up(port, claim, self.view())

    def local_down(self, instance: str, reason: str) -> None:
        """Serve an instance no more; its scheduler reports what peers had there."""
        self.routes.local_down(instance, reason)

    def local_failed(self, model: str, reason: str) -> None:
        """Answer who waits for a model that cannot be loaded here, if nobody else has it."""
        elsewhere = (
            facts.model == model
            for node in self.view().living()
            if node.boot != self._me.boot
            for facts in node.instances.values()
        )
        if not any(elsewhere):
            self._router.give_up(model, reason)

    def changed(self) -> None:
        """Publish with the next refresh what has changed on a device."""
        self._dirty = True

    def drain(self) -> None:
        """Take nothing more from peers, and tell them."""
        self._draining = self.network.serving.draining = True
        self.routes.close_local()
        self._refresh()

    def guests(self) -> int:
        """Return how many requests of other nodes are here."""
        return len(self.network.serving.requests())

    async def requests(self) -> tuple[list[RequestFacts], list[str]]:
        """Return the requests of the whole cluster, and the names of nodes that did not answer."""
        others = [node for node in self.view().living() if node.boot != self._me.boot]
        answers = await self.network.ask_all(others, REQUESTS)
        found, silent = self._router.requests(self._clock.now()), []
        for node, answer in zip(others, answers, strict=True):
            try:
                found += decode_requests(answer or b"")
            except ProtocolError:
                silent.append(node.name)
        return found, silent

    async def join(self) -> None:
        """Wait for a failure, and raise it."""
        assert self._task is not None, "not open"
        failure = asyncio.ensure_future(self.network.join())
        try:
            # unbounded on purpose: this is the node's life
            await asyncio.wait({failure, self._task}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (failure, self._task):
                if ended.done():
                    ended.result()
        finally:
            failure.cancel()
            await asyncio.wait({failure})  # at once

    async def close(self) -> None:
        """Say goodbye, then end everything; can be called before `open`."""
        if self._task is not None:
            await self.network.leave()
            self._task.cancel()
            await asyncio.wait({self._task})  # at once
        await self.definitions.close()
        await self.network.close()

    # What comes from other nodes.

    def members_changed(self, news: Sequence[News]) -> None:
        """Take members and what they publish; implements `NetworkListener`."""
        now, structural = self._clock.now(), False
        for item in news:
            match item:
                case MemberChanged(member=member):
                    self._on_member(member, now)
                    structural = True
                case MemberForgotten(boot=boot):
                    self.directory.member_forgotten(boot)
                    structural = True
                case StateChanged(updates=updates):
                    self.directory.updated(updates, now)
                    structural |= any(not u.key.startswith("load/") for u in updates)
                    loaded = {u.boot for u in updates if u.key.startswith("load/")}
                    self.routes.take_loads(loaded, self.view())
                case _:
                    pass
        if structural:
            self._follow()

    def loads_reported(self, boot: str, loads: Iterable[LoadFacts]) -> None:
        """Take a load report; implements `NetworkListener`."""
        self.directory.loads_reported(boot, loads, self._clock.now())
        self.routes.take_loads({boot}, self.view())

    def peer_lost(self, boot: str, reason: str) -> None:
        """Route around a node whose link broke; implements `NetworkListener`."""
        self.routes.eject(boot, f"peer lost: {reason}")

    def _on_member(self, member: Rumour, now: float) -> None:
        if member.boot == self._me.boot:
            return
        log.info(
            "member name=%s boot=%s status=%s address=%s:%d",
            member.name, member.boot, member.status.name.lower(), member.host, member.port,
        )  # fmt: skip
        self.directory.member_changed(member, now)
        if member.status in (Status.DEAD, Status.LEFT):
            self.network.links.drop(member.boot, f"the node is {member.status.name.lower()}")

    def _follow(self) -> None:
        """Draw the consequences of what other nodes are and define by now."""
        self.definitions.settle(self.view())
        self.routes.follow(self.view())

    # What this node tells.

    async def _run(self) -> None:
        while True:  # unbounded on purpose: until `close`
            await self._clock.sleep(REFRESH_S)
            try:
                self.routes.forgive(self.view())
                self._refresh()
            except Exception:  # the next one may do better; requests do not need it
                log.exception("refresh_failed")

    def _refresh(self) -> None:
        """Publish what has changed since the last time."""
        stable, loads = self._facts()
        if self._dirty or self._draining:
            self._dirty = False
            self._publish_stable(stable)
        self._publish_loads(loads)

    def _publish_stable(self, facts: list[Fact]) -> None:
        present: dict[str, Fact] = {key_of(fact): fact for fact in facts}
        present["node"] = NodeFacts(self._me.name, self._http, self._draining, SOFTWARE)
        present |= {key_of(fact): fact for fact in self.definitions.facts()}
        news = changed(self._published, present)
        if not news:
            return
        self._published = present
        self.directory.published(news, self._clock.now())
        self.network.publish(encoded(news))
        self._follow()

    def _publish_loads(self, loads: list[LoadFacts]) -> None:
        present: dict[str, Fact] = {key_of(load): load for load in loads}
        news = changed(self._loads, present)
        if news:
            self._loads = present
            self.directory.published(news, self._clock.now())
            self.network.report([load for load in news.values() if isinstance(load, LoadFacts)])
            self._load_news |= news
        if self._load_news and self._clock.now() >= self._load_gossip_s:
            self._load_gossip_s = self._clock.now() + GOSSIP_LOAD_S
            self.network.publish(encoded(self._load_news))
            self._load_news = {}

    # What others ask.

    async def _fetch(self, boot: str, what: str, max_bytes: int) -> bytes:
        node = self.view().nodes.get(boot)
        if node is None:
            raise PeerLost(f"node {boot} is not a member any more")
        return await self.network.fetch(node, what, max_bytes)

    def _content(self, what: str) -> bytes | None:
        if what == REQUESTS:
            return encode_requests(self._router.requests(self._clock.now()))
        return self.definitions.content(what)


def encoded(news: Mapping[str, Fact | None]) -> dict[str, bytes | None]:
    """Return news as entries of the directory."""
    return {key: None if fact is None else encode_fact(fact) for key, fact in news.items()}


def _url(host: str, reachable: str, port: int) -> str:
    """Return the API's base URL as other machines see it."""
    shown = reachable if is_wildcard(host) else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
