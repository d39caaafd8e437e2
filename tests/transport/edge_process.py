"""A worker's edges in a process of their own: `edge_process.py ROLE EDGE KEY SIZE [PORT]`.

A source sends blob 0, an idle one the first half of it, a target receives it. Prints its port, then
each message.
"""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blitzgw.core.transfer import (
    DataNetwork,
    EdgeClosed,
    EdgeTerms,
    OpenReceive,
    OpenSend,
)
from blitzgw.transport.edges import Edges
from tests.transport.edges_kit import NET, MemoryStore


def main(role, edge, key, size, port="0"):
    ended = threading.Event()
    store = MemoryStore((int(size),))
    if role != "target":
        store.resident[0] = int(size) // (2 if role == "idle" else 1)

    def tell(message):
        print(repr(message), flush=True)
        if isinstance(message, EdgeClosed):
            ended.set()

    edges = Edges([DataNetwork(NET, "127.0.0.1")], lambda _: store, tell)
    print(edges.ports[NET], flush=True)
    terms = EdgeTerms(edge, "op", "w", (0,), bytes.fromhex(key), 7, NET)
    if role != "target":
        edges.open_send(OpenSend(terms))
    else:
        edges.open_receive(OpenReceive(terms, "127.0.0.1", int(port)))
    ended.wait()
    edges.stop()
    edges.join(5)


if __name__ == "__main__":
    main(*sys.argv[1:])
