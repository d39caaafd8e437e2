"""What connects a node with others: gossip in its thread, peer links, both ends of requests.

    gossip ── members, entries ──► NetworkListener
    links ──► switchboard ──► serving, ingress, content

In a cluster of one, which has no key, all of it is there and nothing listens.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from blitzgw.config import ClusterConfig
from blitzgw.core.clock import Clock
from blitzgw.core.peer import LoadReport
from blitzgw.core.ports import PlainIngress
from blitzgw.core.rumours import Rumour
from blitzgw.core.view import InstanceFacts, LoadFacts, NodeView
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.crypto.streams import HANDSHAKE_S, connect_secure
from blitzgw.errors import BlitzError, PeerLost
from blitzgw.gossip.addresses import advertised_host
from blitzgw.gossip.content import ContentClient, ContentServer, Provider
from blitzgw.gossip.crossing import News
from blitzgw.gossip.events import Address
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.links import Links
from blitzgw.gossip.membership import Membership
from blitzgw.gossip.remote import RemoteIngress, RemoteInstance
from blitzgw.gossip.serving import Serving
from blitzgw.gossip.shell import GossipThread
from blitzgw.gossip.switchboard import OperationsPort, Switchboard
from blitzgw.gossip.terms import GossipSettings, GossipStatistics

log = logging.getLogger(__name__)

LEAVE_S = 1.0
"""How long a goodbye may take: it goes out within a few gossip intervals."""

FETCH_S = 10.0
"""How long a peer may take for each chunk of content."""

ASK_S = 1.0
"""How long a peer may take to list its requests: somebody waits at a terminal."""

LIST_BYTES = 2 << 20
"""Largest list of requests: a node tells a thousand of them, in some 200 KB."""

REPORT_LOADS = 100
"""Loads in one report: at most some 450 bytes each, within a message's 64 KiB."""


class NetworkListener(Protocol):
    """Who is told what comes from other nodes. Called from the event loop; must not block."""

    def members_changed(self, news: Sequence[News]) -> None:
        """Members, or what they publish, have changed."""

    def loads_reported(self, boot: str, loads: Iterable[LoadFacts]) -> None:
        """A peer tells how busy its instances are."""

    def peer_lost(self, boot: str, reason: str) -> None:
        """A link broke; take the peer's instances out of the router before this returns."""


class Network:
    """The sockets of the process `me`, and the two ends of requests that cross them."""

    def __init__(
        self,
        config: ClusterConfig,
        keys: Sequence[str],
        me: Rumour,
        router: PlainIngress,
        provider: Provider,
        listener: NetworkListener,
        operations: OperationsPort,
        *,
        clock: Clock,
        dilation: float,
    ) -> None:
        self.me = me
        self.knobs = Knobs.of(config.probe_interval_s)
        self._config, self._listener, self._clock = config, listener, clock
        self._dilation = dilation
        self._keyring = Keyring(keys) if keys else None
        self._gossip: GossipThread | None = None
        self._failure: asyncio.Future[None] | None = None
        board = Switchboard(self._on_load, operations)
        self.links = Links(me.boot, self._dial, clock, board)
        self.ingress = RemoteIngress(self.links, router, self._on_peer_lost)
        self.serving = Serving(self.links, router, clock)
        self._server = ContentServer(self.links, provider, clock)
        self._client = ContentClient(self.links, clock)
        board.join(self.serving, self.ingress, self._server, self._client)

    async def open(self) -> None:
        """Listen and join, where there is a key; `me` has the advertised address then.

        Raises BlitzError where the address cannot be used.
        """
        self._failure = asyncio.get_running_loop().create_future()
        if self._keyring is None:
            return
        config = self._config
        advertised = await advertised_host(config.host, config.advertise, config.join)
        settings = GossipSettings(
            self.me.boot, config.host, config.port, (advertised, 0), config.join, self._dilation
        )
        self._gossip = GossipThread(
            settings,
            self._keyring,
            self._clock,
            self._make,
            on_effects=self._listener.members_changed,
            on_link=self.links.accept,
            on_failure=self._on_failure,
        )
        try:
            await self._gossip.start()
        except OSError as error:
            where = f"{config.host}:{config.port}"
            raise BlitzError(f"cannot listen for peers on {where}: {error.strerror}") from error
        log.info(
            "cluster_listening address=%s:%d boot=%s", self.me.host, self.me.port, self.me.boot
        )

    def publish(self, entries: Mapping[str, bytes | None]) -> None:
        """Tell all members what has changed of this node's state."""
        if self._gossip is not None and entries:
            self._gossip.publish(entries)

    def report(self, loads: Sequence[LoadFacts]) -> None:
        """Tell the peers that use this node's instances."""
        users = self.serving.users.at(self._clock.now())
        for start in range(0, len(loads), REPORT_LOADS):
            message = LoadReport(tuple(loads[start : start + REPORT_LOADS]))
            for boot in users:
                self.links.send(boot, None, message)

    def remote(self, node: NodeView, facts: InstanceFacts) -> RemoteInstance:
        """Return the router's way to an instance of another node."""
        load = node.loads.get(facts.id)
        return RemoteInstance(self.ingress, self.links, self._clock, node, facts, load)

    async def fetch(self, node: NodeView, what: str, max_bytes: int) -> bytes:
        """Return content of another node; raises PeerLost, ProtocolError."""
        address = (node.host, node.port)
        return await self._client.fetch(node.boot, address, what, max_bytes, FETCH_S)

    async def ask_all(self, nodes: Sequence[NodeView], what: str) -> list[bytes | None]:
        """Return the content of that name of each node, None where it did not answer in time."""

        async def ask(node: NodeView) -> bytes | None:
            address = (node.host, node.port)
            try:
                return await self._client.fetch(node.boot, address, what, LIST_BYTES, ASK_S)
            except BlitzError:
                return None

        return list(await asyncio.gather(*map(ask, nodes)))

    def statistics(self) -> GossipStatistics | None:
        """Return the figures of gossip; None in a cluster of one."""
        return None if self._gossip is None else self._gossip.statistics()

    async def join(self) -> None:
        """Wait for a failure of gossip's thread, and raise it."""
        assert self._failure is not None, "not open"
        await asyncio.shield(self._failure)  # unbounded on purpose: this is the node's life

    async def leave(self) -> None:
        """Say goodbye."""
        if self._gossip is not None:
            await self._gossip.leave(LEAVE_S)

    async def close(self) -> None:
        """End everything; can be called twice, and before `open`."""
        await self._server.stop()
        await self.links.stop()
        if self._gossip is not None:
            await self._gossip.stop()

    def _make(self, address: Address) -> Membership:
        self.me = self.me._replace(host=address[0], port=address[1])
        return Membership(self.me, self.knobs, random.Random())  # noqa: S311  no secret depends on it

    async def _dial(self, address: Address) -> tuple[socket.socket, Session, str]:
        if self._keyring is None:
            raise PeerLost("this node has no cluster key")
        patience_s = HANDSHAKE_S * self._dilation
        return await connect_secure(address, self._keyring, self.me.boot, Purpose.LINK, patience_s)

    def _on_load(self, boot: str, report: LoadReport) -> None:
        self._listener.loads_reported(boot, report.loads)

    def _on_peer_lost(self, boot: str, reason: str) -> None:
        if self._gossip is not None:
            self._gossip.link_broke(boot)
        self._listener.peer_lost(boot, reason)

    def _on_failure(self, failure: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(failure)
