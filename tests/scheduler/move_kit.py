"""Two complete instances, and a pairing by which one gives running sequences to the other."""

from __future__ import annotations

from collections import deque
from random import Random

from blitzgw.core.live import Moved, Purpose
from blitzgw.core.parcels import ParcelsSent
from blitzgw.core.step import KvGeometry
from blitzgw.scheduler.events import MoveOut, PairingOpened
from tests.scheduler.live_kit import LiveWorld, Pairing


class MoveWorld(LiveWorld):
    """Instances that never load; messages and parcels as in any live world."""

    def pair_to_move(self, guest: str, host: str, count: int = 99, *, queued: bool = False) -> str:
        name = f"p{len(self.pairings) + 1}"
        self.pairings[name] = Pairing(name, guest, host)
        self.mail[name, guest], self.mail[name, host] = deque(), deque()
        self.tell(host, PairingOpened(name, Purpose.MOVE, host, guest, False))
        self.tell(guest, PairingOpened(name, Purpose.MOVE, guest, host, True))
        self.tell(guest, MoveOut(name, count, queued))
        return name

    def spoil(self, pairing: str) -> None:
        """The next thing on a road cannot be sent."""
        pair = self.pairings[pairing]
        queue = self.nodes[pair.guest].worker.outgoing.get(pairing)
        if queue:
            out = queue.popleft()
            sent = ParcelsSent(pairing, out.send.ticket, 0, 0.0, "made to fail")
            self.tell(pair.guest, sent)

    def happen(self, random: Random) -> None:
        """Let one thing happen, whatever it is."""
        found = self.choices()
        if found:
            act, *arguments = random.choice(found)
            act(*arguments)

    def moved(self) -> list[Moved]:
        return [said for said in self.said if isinstance(said, Moved)]

    def computed(self, name: str) -> int:
        """Return how many positions a worker has computed."""
        return sum(row.count for step in self.nodes[name].worker.ran for row in step.rows)


def two(kv_bytes: int = 10_000, **options: object) -> MoveWorld:
    """Instances a and b, with room for sequences of 640 tokens."""
    world = MoveWorld()
    changes = {"kv": KvGeometry(slots=6, blocks_per_slot=40, block_bytes=10)}
    changes |= {"max_model_len": 600}
    for name in ("a", "b"):
        world.add(name, kv_bytes=kv_bytes, **changes, **options)
    return world
