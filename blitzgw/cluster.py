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
from collections.abc import Callable, Iterable, Sequence

from blitzgw.api.services import VERSION, unix_time
from blitzgw.config import Config
from blitzgw.configfile.cluster import is_wildcard, join_address
from blitzgw.core.clock import Clock
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.rumours import Rumour, Status
from blitzgw.core.view import ClusterView, Fact, LoadFacts, NodeFacts, RequestList
from blitzgw.definitions import Definitions
from blitzgw.errors import PeerLost
from blitzgw.following import Following
from blitzgw.gossip.crossing import News
from blitzgw.gossip.directory import Directory
from blitzgw.gossip.events import MemberChanged, MemberForgotten, StateChanged
from blitzgw.machine import Machine
from blitzgw.network import Network
from blitzgw.placement import LoadedModel
from blitzgw.publishing import Publisher
from blitzgw.requestlist import REQUESTS, RequestLists
from blitzgw.router.router import Router
from blitzgw.routes import Routes
from blitzgw.scaleorders import OPERATION, OPERATIONS, WHY, WHYS
from blitzgw.scaler import Scaler
from blitzgw.scheduler.shell import LocalInstance

log = logging.getLogger(__name__)

REFRESH_S = 0.05
"""Between two looks at what to publish: fresh enough for routing. Each wakes a process that perhaps
nobody asks, so that a node which has nothing to look at waits until it is told of something. Loads
change untold, but where no peer uses the instances a look at each tick of the node is enough."""

FOLLOW_S = 0.02
"""Between two times that the consequences of others' news are drawn: each looks at every instance,
so that hundreds of nodes that come at once are followed together."""

SOFTWARE = {"blitzgw": VERSION, "layout": str(LAYOUT_VERSION)}
"""What a node tells of its own versions; those of its workers are with its devices."""


class Cluster:
    """Joins devices, network and router of the process `boot`; implements `NetworkListener`."""

    def __init__(
        self,
        config: Config,
        boot: str,
        models: Sequence[LoadedModel],
        router: Router,
        clock: Clock,
        facts: Callable[[], list[Fact]],
        loads: Callable[[], list[LoadFacts]],
    ) -> None:
        self._config, self._router, self._clock = config, router, clock
        self._facts, self._loads = facts, loads
        cluster = config.cluster
        self._me = Rumour(
            boot, config.node.name, cluster.host, cluster.port, unix_time(), 0, Status.ALIVE
        )
        self.directory = Directory(self._me, clock.now())
        self.machine = Machine(config.transfer, clock)
        self.scaling = Scaler(self._me, self.view, self.machine, clock, config, self.changed)
        self.network = Network(
            cluster,
            config.cluster_keys,
            self._me,
            router,
            self._content,
            self,
            self.scaling,
            clock=clock,
            dilation=config.node.dilation,
        )
        self.definitions = Definitions(models, clock, self._fetch)
        self.scaling.join(self.network, self.definitions, router)
        self.routes = Routes(router, self.network, self.definitions, clock)
        router.summon = lambda instance: self.routes.summon(instance, self.view())
        self._publisher = Publisher(self.directory, self.network, clock)
        self._users = self.network.serving.users
        self._lists = RequestLists(router, self.network, clock)
        self._reasons: dict[str, str] = {}
        self._news = asyncio.Event()
        self._following = Following(
            router,
            self.routes,
            self.definitions,
            self._reasons,
            self.scaling.view_changed,
            self.changed,
            self._news.set,
        )
        self._http = ""
        self._draining = False
        self._dirty = True
        self._stirred = asyncio.Event()
        """Set with whatever there may be to look at from now on."""
        self._users.on_new = self._stirred.set
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def networked(self) -> bool:
        """Whether there may be other nodes."""
        return bool(self._config.cluster_keys)

    async def open(self, http_port: int) -> None:
        """Join the cluster; the API listens already. Raises BlitzError as `Network.open` does."""
        self.definitions.open(self._news.set)
        await self.network.open()
        self._me = self.network.me
        self.directory.member_changed(self._me, self._clock.now())
        self._http = _url(self._config.http.host, self._me.host, http_port)
        self.scaling.open(self._me)
        self._refresh()
        loop = asyncio.get_running_loop()
        self._tasks = {loop.create_task(self._refreshing()), loop.create_task(self._follow())}

    def view(self) -> ClusterView:
        """Return this node's picture of the cluster."""
        return self.directory.view()

    def local_up(self, port: LocalInstance, claim: int, digest: str) -> None:
        """Serve an instance of a device of this node, at a claim of the device.

        `digest` is that of its model's definition; empty: this node's own.
        """
        self.routes.local_up(port, claim, digest or self.definitions.digest_of(port.model))
        self._stirred.set()  # its load
        if self.routes.follow(self.view()):
            self._news.set()

    def local_down(self, instance: str, reason: str, *, planned: bool = False) -> None:
        """Serve an instance no more; its scheduler reports what peers had there."""
        self.routes.local_down(instance, reason, planned=planned)

    def local_failed(self, model: str, reason: str) -> None:
        """Note why a model cannot be loaded here: for who waits for it, if nobody else has it."""
        self._reasons[model] = reason
        self.changed()

    def changed(self) -> None:
        """Publish with the next refresh what has changed on a device."""
        self._dirty = True
        self._stirred.set()

    def tick(self) -> None:
        """Look at loads, which change untold; several times a second."""
        if self._publisher.pending:
            self._publisher.loads(self._loads())

    def drain(self) -> None:
        """Take nothing more from peers, and tell them."""
        self._draining = self.network.serving.draining = True
        self.routes.close_local()
        self._refresh()
        self._stirred.set()

    def guests(self) -> int:
        """Return how many requests of other nodes are here."""
        return len(self.network.serving.requests())

    def displaced(self) -> bool:
        """Tell whether an older node has this one's name, so that its instances have its ids."""
        return self._following.eldest(self._me.name) not in ("", self._me.boot)

    async def requests(self) -> RequestList:
        """Return the requests of the whole cluster, as of the last second."""
        others = [node for node in self.view().living() if node.boot != self._me.boot]
        return await self._lists.everywhere(others)

    async def join(self) -> None:
        """Wait for a failure, and raise it."""
        assert self._tasks, "not open"
        failure = asyncio.ensure_future(self.network.join())
        try:
            # unbounded on purpose: this is the node's life
            await asyncio.wait({failure, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (failure, *self._tasks):
                if ended.done():
                    ended.result()
        finally:
            failure.cancel()
            await asyncio.wait({failure})  # at once

    async def close(self) -> None:
        """Say goodbye, then end everything; can be called before `open`."""
        if self._tasks:
            await self.network.leave()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)  # at once
        await self.scaling.close()
        await self._lists.close()
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
                    taken = self.directory.updated(updates, now)
                    structural |= taken.structural
                    self.routes.take_loads(taken.loads)
        if structural:
            self._news.set()

    def loads_reported(self, boot: str, loads: Iterable[LoadFacts]) -> None:
        """Take a load report; implements `NetworkListener`."""
        fresh = self.directory.loads_reported(boot, loads, self._clock.now())
        self.routes.take_loads({boot: fresh})

    def peer_lost(self, boot: str, reason: str) -> None:
        """Route around a node whose link broke; implements `NetworkListener`."""
        self.routes.eject(boot, f"peer lost: {reason}", self.view())
        self._stirred.set()  # until it is forgiven

    def _on_member(self, member: Rumour, now: float) -> None:
        if member.boot == self._me.boot:
            return
        log.info(
            "member name=%s boot=%s status=%s address=%s:%d",
            member.name, member.boot, member.status.name.lower(), member.host, member.port,
        )  # fmt: skip
        self.directory.member_changed(member, now)
        if member.status in (Status.DEAD, Status.LEFT):
            left = member.status is Status.LEFT
            why = "the node has left" if left else "the node is believed to be dead"
            self.network.links.drop(member.boot, why, expected=left)
            self.scaling.node_died(member.boot)

    async def _follow(self) -> None:
        while True:  # unbounded on purpose: until `close`
            await self._news.wait()
            self._news.clear()
            try:
                self._following.follow(self.view())
            except Exception:  # the next news may do better; running streams do not need it
                log.exception("follow_failed")
            await self._clock.sleep(FOLLOW_S)

    # What this node tells.

    async def _refreshing(self) -> None:
        while True:  # unbounded on purpose: until `close`
            if not self._restless():
                self._stirred.clear()
                await self._stirred.wait()  # unbounded: whoever gives it something to do sets it
            await self._clock.sleep(REFRESH_S)
            try:
                if self.routes.forgive():
                    self._news.set()
                self._refresh()
            except Exception:  # the next one may do better; requests do not need it
                log.exception("refresh_failed")

    def _restless(self) -> bool:
        """Tell whether another look, before the next tick, may find something for somebody."""
        changed = self._dirty or self._draining
        used = self._publisher.pending and self._users.at(self._clock.now())
        return changed or bool(used) or self.routes.unforgiving

    def _refresh(self) -> None:
        """Publish what has changed since the last time."""
        if self._dirty or self._draining:
            self._dirty = False
            own = NodeFacts(self._me.name, self._http, self._draining, SOFTWARE)
            if self._publisher.stable([*self._facts(), own, *self.definitions.facts()]):
                self._following.follow(self.view())
        self._publisher.loads(self._loads())

    # What others ask.

    async def _fetch(self, boot: str, what: str, max_bytes: int) -> bytes:
        node = self.view().nodes.get(boot)
        if node is None:
            raise PeerLost(f"node {boot} is not a member any more")
        return await self.network.fetch(node, what, max_bytes)

    def _content(self, what: str) -> bytes | None:
        if what == REQUESTS:
            return self._lists.own()
        if what in (OPERATIONS, WHYS) or what.startswith((OPERATION, WHY)):
            return self.scaling.orders.content(what)
        return self.definitions.content(what)


def _url(host: str, reachable: str, port: int) -> str:
    """Return the API's base URL as other machines see it."""
    return f"http://{join_address(reachable if is_wildcard(host) else host, port)}"
