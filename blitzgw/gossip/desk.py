"""What all parts of membership work on."""

from __future__ import annotations

from typing import NamedTuple

from blitzgw.gossip.agenda import Agenda
from blitzgw.gossip.health import Health
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.members import Members, Randomness
from blitzgw.gossip.post import Post
from blitzgw.gossip.statebook import StateBook
from blitzgw.gossip.tally import Tally


class Desk(NamedTuple):
    """The books of one node, and the post that takes its effects."""

    knobs: Knobs
    rng: Randomness
    agenda: Agenda
    members: Members
    states: StateBook
    post: Post
    health: Health
    tally: Tally
