"""A worker on a GPU in a process of its own: `nccl_process.py source|target DEVICE SIZE [PACE_S]`.

Reads `EDGE KEY PORT` lines: a source sends, a target receives from PORT. A source makes a megabyte
resident at a time, PACE_S apart, once the ends have agreed on NCCL. Prints its port, then what
happens. DEVICE "cpu" has no NCCL: everything goes by TCP.
"""

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from blitzgw.core.transfer import DataNetwork, EdgeClosed, EdgeTerms, OpenReceive, OpenSend
from blitzgw.transport.edges import Edges
from blitzgw.transport.nccl import open_library, version_name
from blitzgw.transport.nccl_bypasses import NcclBypasses
from tests.transport.edges_kit import NET, until
from tests.worker.device_kit import MB, Weights

AGREE_S = 20.0


def say(*words):
    print(*words, flush=True)


def contents(size):
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.manual_seed(5))


def fill(weights, device, pace_s, has_agreed):
    """Make a source's blob resident."""
    size, began = len(weights.data[0]), time.monotonic()
    patience_s = AGREE_S if device != "cpu" else 0.0
    weights.write(0, 0, MB)  # goes inline while the pair warms
    while not has_agreed() and time.monotonic() - began < patience_s:
        time.sleep(0.005)
    say("agreed", has_agreed(), f"{time.monotonic() - began:.3f}")
    for start in range(MB, size, MB):
        weights.write(0, start, min(size, start + MB))
        time.sleep(pace_s)


def main(role, device, size, pace_s="0"):
    size = int(size)
    weights = Weights([contents(size).numpy().tobytes()], device)
    bypasses = None
    if device != "cpu":
        library = open_library(torch.device(device).index or 0)
        say("nccl", version_name(library.version))
        bypasses = NcclBypasses(library)

    def tell(message):
        if isinstance(message, EdgeClosed):
            say("closed", message.edge, weights.landed_bytes, message.reason or "well")

    edges = Edges([DataNetwork(NET, "127.0.0.1")], lambda _: weights.store, tell, bypasses=bypasses)
    say("port", edges.ports[NET])

    def has_agreed():
        return any(end._bypass and end._bypass.ready for end in list(edges._ends.values()))

    for line in sys.stdin:
        edge, key, port = line.split()
        terms = EdgeTerms(edge, "op", "w", (0,), bytes.fromhex(key), 7, NET)
        if role == "source":
            edges.open_send(OpenSend(terms))
            args = (weights, device, float(pace_s), has_agreed)
            threading.Thread(target=fill, args=args, daemon=True).start()
        elif edge == "check":
            until(weights.proven)
            say("identical", weights.is_right() and not weights.damaged)
        else:
            edges.open_receive(OpenReceive(terms, "127.0.0.1", int(port)))
    edges.stop()
    edges.join(10)
    if bypasses is not None:
        bypasses.stop()
        say("ended", bypasses.join(10))
    weights.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
