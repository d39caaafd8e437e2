"""A stand-in for `cupy.cuda` and its NCCL within one process: pointers are host addresses.

It is as strict as the real one is unforgiving: what would hang, crash or corrupt there is written
down in `World.faults`. Communicators are non-blocking: calls raise KeyError(7) while in progress.
"""

import ctypes
import itertools
import threading
import time
from types import SimpleNamespace

IN_PROGRESS = 7
REMOTE_ERROR = 6


class World:
    """What connects the GPUs: communicators meet by their unique id."""

    def __init__(self, warm_s=0.0, settle_s=0.0):
        self.warm_s, self.settle_s = warm_s, settle_s
        self.lock = threading.RLock()
        self.rooms = {}
        self.faults = []
        self.n_names = 0
        self.n_moved = 0
        self.launches = []
        """(gpu, "recv" or "send") in the order of launches."""
        self.fails_to_connect = False
        self.error_after = None
        """After so many pieces the next one ends in an async error at both ends."""
        self.hang_after = None
        """After so many pieces nothing moves any more."""
        self.damage = set()
        """The numbers of pieces of which a bit is flipped."""
        self.ignores_abort = False
        self.holds_abort = threading.Event()
        """Cleared, an abort returns only once it is set."""
        self.holds_abort.set()

    def gpu(self, version=22809, name="gpu"):
        """Return what takes the place of `cupy.cuda` in one process."""
        return _Cuda(self, version, name)

    def fault(self, what):
        with self.lock:
            self.faults.append(what)

    def progress(self, room):
        """Move the bytes of every send that has met its receive."""
        with self.lock:
            while all(rank in room for rank in (0, 1)):
                one, other = room[0].queue, room[1].queue
                if not one or not other or not self._move(room, one[0], other[0]):
                    return
                one.pop(0).done = other.pop(0).done = True
                self.n_moved += 1

    def _move(self, room, send, recv):
        if self.hang_after is not None and self.n_moved >= self.hang_after:
            return False
        if send.size != recv.size or send.is_recv or not recv.is_recv:
            self.fault(f"a send of {send.size} met a receive of {recv.size}")
            room[0].error = room[1].error = REMOTE_ERROR
            return False
        if self.error_after is not None and self.n_moved >= self.error_after:
            ctypes.memset(recv.pointer, 0xEE, recv.size // 2)  # cut off in the middle
            room[0].error = room[1].error = REMOTE_ERROR
            self.error_after = None
            return False
        ctypes.memmove(recv.pointer, send.pointer, send.size)
        if self.n_moved in self.damage:
            place = ctypes.c_ubyte.from_address(recv.pointer + recv.size // 3)
            place.value ^= 4
        return True


class _Cuda:
    """`cupy.cuda`: one GPU as one process sees it."""

    def __init__(self, world, version, name):
        self.world, self.name = world, name
        self.thread = None
        self.live = set()
        self.nccl = SimpleNamespace(
            get_version=lambda: version,
            get_unique_id=self._unique_id,
            NCCL_UINT8=1,
            NcclCommunicator=type("NcclCommunicator", (_Communicator,), {"cuda": self}),
        )

    def is_available(self):
        return True

    def Device(self, index):
        return SimpleNamespace(use=lambda: None)

    def Stream(self, non_blocking=False):
        assert non_blocking
        return _Stream()

    def Event(self, disable_timing=False):
        return _Event()

    def _unique_id(self):
        with self.world.lock:
            self.world.n_names += 1
            return self.world.n_names.to_bytes(128, "big")

    def own_thread(self, what):
        """One thread alone calls NCCL."""
        self.thread = self.thread or threading.current_thread()
        if self.thread is not threading.current_thread():
            self.world.fault(f"{what} on another thread")


class _Communicator:
    cuda = None

    def __init__(self, n_ranks, unique_id, rank):
        assert n_ranks == 2
        assert len(unique_id) == 128
        self.cuda.own_thread("a communicator")
        self.world, self.rank = self.cuda.world, rank
        self.alive, self.error, self.queue, self.way = True, 0, [], None
        self.busy_until = 0.0
        self.cuda.live.add(self)
        if self.world.fails_to_connect:
            raise RuntimeError("NCCL_ERROR_SYSTEM_ERROR: no connection")
        with self.world.lock:
            self.room = self.world.rooms.setdefault(unique_id, {})
            assert rank not in self.room, "a rank twice"
            self.room[rank] = self
            if len(self.room) == 2:
                self.room["warm_at"] = time.monotonic() + self.world.warm_s
        raise KeyError(IN_PROGRESS)

    def check_async_error(self):
        self.cuda.own_thread("check_async_error")
        if not self.alive:
            self.world.fault("a call after abort")
            raise RuntimeError("the communicator is gone")
        if self.error:
            raise KeyError(self.error)
        warm_at = self.room.get("warm_at")
        if warm_at is None or time.monotonic() < max(warm_at, self.busy_until):
            raise KeyError(IN_PROGRESS)
        self.world.progress(self.room)
        if self.error:
            raise KeyError(self.error)

    def send(self, pointer, size, kind, peer, stream):
        self._launch(pointer, size, kind, peer, stream, is_recv=False)

    def recv(self, pointer, size, kind, peer, stream):
        self._launch(pointer, size, kind, peer, stream, is_recv=True)

    def _launch(self, pointer, size, kind, peer, stream, is_recv):
        self.cuda.own_thread("a launch")
        assert kind == 1
        assert peer == 1 - self.rank
        try:
            self.check_async_error()
        except KeyError as e:
            if e.args[0] == IN_PROGRESS:
                self.world.fault("a launch before the last call has settled")
            raise
        if self.way not in (None, is_recv):
            self.world.fault("both directions on one communicator")
        self.way = is_recv
        op = SimpleNamespace(pointer=pointer, size=size, is_recv=is_recv, done=False)
        with self.world.lock:
            self.world.launches.append((self.cuda.name, "recv" if is_recv else "send"))
            self.queue.append(op)
            _STREAMS[stream].append(op)
        if self.world.settle_s:
            self.busy_until = time.monotonic() + self.world.settle_s
            raise KeyError(IN_PROGRESS)

    def abort(self):
        self.cuda.own_thread("abort")
        if not self.alive:
            return
        self.world.holds_abort.wait()
        self.alive = False
        self.cuda.live.discard(self)
        if not self.world.ignores_abort:
            with self.world.lock:
                for op in self.queue:
                    op.done = True
                self.queue.clear()

    def destroy(self):
        if getattr(self, "alive", False):
            self.alive = False
            self.world.fault("destroyed without an abort: this waits for the peer")

    def __del__(self):
        self.destroy()


_STREAMS = {}
_NUMBERS = itertools.count(1)


class _Stream:
    def __init__(self):
        self.ptr = next(_NUMBERS)
        _STREAMS[self.ptr] = []

    def __del__(self):
        _STREAMS.pop(self.ptr, None)


class _Event:
    def __init__(self):
        self._ops = []

    def record(self, stream):
        self._ops = list(_STREAMS[stream.ptr])
        _STREAMS[stream.ptr] = [op for op in self._ops if not op.done]

    @property
    def done(self):
        return all(op.done for op in self._ops)
