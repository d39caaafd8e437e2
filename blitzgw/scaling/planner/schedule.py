"""The binomial pipeline's steps: who sends which block to whom when (RDMC, DSN '18).

Nodes sit on the vertices of a hypercube of l = ⌊log2 N⌋ dimensions, vertex 0 is the source; what
does not fit shares a vertex with another node, its *twin*. In step s pairs of vertices exchange
blocks along dimension s mod l, and twins even out what they have. Every node sends at most one
block and receives at most one in each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Move = tuple[int, int, int]
"""(sender, receiver, block); node 0 is the source."""


def steps_of(nodes: int, blocks: int) -> int:
    """Return how many steps the pipeline takes, T: b + l, less one where N is a power of two."""
    if nodes < 2 or blocks < 1:
        return 0
    dims = nodes.bit_length() - 1
    return blocks + dims - (1 if nodes == 1 << dims else 0)


def schedule(nodes: int, blocks: int) -> list[list[Move]]:
    """Return the moves of each step; moves of a step read what was there at its start."""
    if steps_of(nodes, blocks) == 0:
        return []
    cube = _Cube(nodes, blocks)
    return [cube.step(step) for step in range(steps_of(nodes, blocks))]


@dataclass(slots=True)
class _Cube:
    nodes: int
    blocks: int
    dims: int = 0
    vertices: int = 0
    last: int = 0
    has: list[set[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dims = self.nodes.bit_length() - 1
        self.vertices = 1 << self.dims
        self.last = steps_of(self.nodes, self.blocks) - 1
        self.has = [set() for _ in range(self.nodes)]
        self.has[0] = set(range(self.blocks))

    def step(self, step: int) -> list[Move]:
        moves: list[Move] = []
        twins = self.nodes > self.vertices
        for vertex in range(self.vertices):
            receiver, other = self._pair(vertex, step)
            if not (twins and step == self.last):
                partner = vertex ^ (1 << (step % self.dims))
                block = self._received(vertex, step)
                if block is not None:
                    moves.append((self._pair(partner, step)[1], receiver, block))
            if other != receiver:
                moves.extend(self._even(receiver, other, step))
        moves = [move for move in moves if move[2] not in self.has[move[1]]]
        for _, receiver, block in moves:
            self.has[receiver].add(block)
        return moves

    def _even(self, receiver: int, other: int, step: int) -> list[Move]:
        moves = [(receiver, other, block) for block in self._oldest(receiver, other)]
        if step == self.last:
            moves.extend((other, receiver, block) for block in self._oldest(other, receiver))
        return moves

    def _oldest(self, source: int, target: int) -> list[int]:
        missing = self.has[source] - self.has[target]
        return [min(missing)] if missing else []

    def _twin(self, vertex: int) -> int | None:
        twin = vertex + self.vertices - 1
        return twin if vertex and twin < self.nodes else None

    def _pair(self, vertex: int, step: int) -> tuple[int, int]:
        """Return R and S of a vertex: who receives from outside, and who sends."""
        twin = self._twin(vertex)
        if twin is None:
            return vertex, vertex
        low = vertex & ((1 << (step % self.dims)) - 1)
        flips = (step // self.dims) * vertex.bit_count() + low.bit_count()
        return (vertex, twin) if flips % 2 == 0 else (twin, vertex)

    def _received(self, vertex: int, step: int) -> int | None:
        """Return the block that a vertex receives along the step's dimension, if any."""
        if vertex == 0:
            return None
        turn = step % self.dims
        rotated = (vertex >> turn) | ((vertex & ((1 << turn) - 1)) << (self.dims - turn))
        if rotated % 2 == 0:
            block = step - self.dims
            return block if 0 <= block < self.blocks else None
        rest = rotated >> 1
        lowest = (rest & -rest).bit_length() if rest else self.dims
        block = step + lowest - self.dims
        return min(block, self.blocks - 1) if block >= 0 else None
