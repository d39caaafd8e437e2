"""The worker process: how it begins, what its threads are, and how it ends.

The *reader* takes messages off the socket. The *main* thread alone knows the instances and runs
everything that touches them, in the order in which it was posted. The *keeper* looks after weights:
a model that arrives does not stop one that serves.

The connection's end is the process's end: nothing here outlives the parent, but host copies, which
are files. Signals that a terminal or a service manager sends to the whole group are ignored,
because the parent drains first and then closes the connection.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from blitzgw.core.messages import Start
from blitzgw.errors import ProtocolError, WorkerLost
from blitzgw.worker.channel import Channel
from blitzgw.worker.commands import EXIT_INTERNAL, Worker
from blitzgw.worker.devices import open_device, undilated

EXIT_PROTOCOL = 65
"""The parent sent something that is not a message (EX_DATAERR of sysexits.h)."""

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> NoReturn:
    """Run a worker on an inherited socket; the process ends in here.

    It ends by `os._exit`: threads inside torch or a read must not hold it up.
    """
    parser = argparse.ArgumentParser(prog="python -m blitzgw.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the parent")
    sock = socket.socket(fileno=parser.parse_args(arguments).fd)
    os.set_inheritable(sock.fileno(), False)
    _follow_parent()
    _end_after(partial(_serve, Channel(sock)))


def _serve(channel: Channel) -> None:
    messages = channel.receive()
    start = next(messages, None)
    if start is None:
        return
    if not isinstance(start, Start):
        raise ProtocolError(f"the first message is {type(start).__name__}, not Start")
    device = open_device(start.device, start.dilation)
    worker = Worker(channel, device, start, undilated(start.dilation))
    gc.freeze()  # what torch's import has made lives for ever: no collection need look at it
    read = partial(_end_after, partial(_read, messages, worker))
    threading.Thread(target=read, name="reader", daemon=True).start()
    channel.send(replace(device.hello(), data_ports=worker.data_ports))
    worker.run()


def _read(messages: Iterator[Any], worker: Worker) -> None:
    try:
        for message in messages:
            worker.post(message)
    finally:
        worker.close()


def _end_after(work: Callable[[], None]) -> NoReturn:
    """End the process once `work` is over, whatever other threads are doing."""
    status = 0
    try:
        work()
    except WorkerLost:
        pass
    except ProtocolError as error:
        sys.stderr.write(f"worker_protocol_error pid={os.getpid()} error={error}\n")
        status = EXIT_PROTOCOL
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        status = EXIT_INTERNAL
    finally:
        sys.stderr.flush()
        os._exit(status)


def _follow_parent() -> None:
    """Ignore what the parent handles; ask Linux to kill this process when the parent dies.

    The end of the connection does that too, wherever Python runs; the kernel's signal also reaches
    a process that is stuck inside a foreign call.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
