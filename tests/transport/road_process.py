"""One end of a road in a process of its own: `road_process.py ROLE KEY PORT`.

Prints its port. A source sends one parcel; a target, which dials PORT, says when it has taken one.
"""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blitzgw.core.transfer import DataNetwork, EdgeClosed, OpenReceive, OpenSend
from blitzgw.transport.edges import Edges
from tests.transport.edges_kit import NET
from tests.transport.parcels_kit import kv, outgoing, road_terms


def main(role, key, port):
    ended = threading.Event()

    def tell(message):
        if isinstance(message, EdgeClosed):
            ended.set()

    def take(edge, parcel, payload):
        print("taken", flush=True)

    edges = Edges([DataNetwork(NET, "127.0.0.1")], lambda _: None, tell, parcels=take)
    print(edges.ports[NET], flush=True)
    terms = road_terms(key=bytes.fromhex(key))
    if role == "source":
        edges.open_send(OpenSend(terms))
        edges.send_parcels("r", [outgoing(kv(), b"x")], lambda *_: None)
    else:
        edges.open_receive(OpenReceive(terms, "127.0.0.1", int(port)))
    ended.wait()
    edges.stop()
    edges.join(5)


if __name__ == "__main__":
    main(*sys.argv[1:])
