"""What strangers may send: it is counted, it changes nothing, and nothing comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time

import pytest

from blitzgw.core.rumours import Digest, Packet, PacketKind, Rumour, Status, SyncAnswer, SyncOffer
from blitzgw.crypto.datagrams import Datagrams
from blitzgw.crypto.handshake import ClientHandshake, Purpose
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.streams import connect_secure, receive_record, send_record
from blitzgw.gossip import streams
from blitzgw.gossip.events import (
    AnswerSync,
    PacketArrived,
    SendPacket,
    StartSync,
    SyncFailed,
    SyncOffered,
    TimePassed,
)
from blitzgw.wire import dump
from tests.gossip.shell_kit import FOREIGN_KEY, KEY, NEW_KEY, Node, Quiet, running, until

EVE = "ee" * 8
KEYRING = Keyring((KEY,))


def ping(boot: str = EVE) -> bytes:
    return dump(Packet(PacketKind.PING, 1, Digest(boot, 0, 0), target=boot))


def rejected(node: Node) -> dict[str, int]:
    return {why: n for why, n in node.gossip.statistics().rejected.items() if n}


@contextlib.contextmanager
def stranger(node: Node):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(node.address)
        sock.setblocking(False)
        yield sock


async def closed_without_answer(sock: socket.socket, limit_s: float = 8.0) -> bool:
    try:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 10), limit_s)
    except ConnectionResetError:
        return True
    return data == b""


async def test_strange_datagrams_are_counted_and_never_answered():
    ann = Node()
    async with running(ann):
        eve = Datagrams(KEYRING, EVE)
        good = eve.seal(ann.boot, ping())
        forged = bytearray(eve.seal(ann.boot, ping()))
        forged[-1] ^= 1
        with stranger(ann) as sock:
            for data in (
                b"",
                good[:45],
                b"\xb1\x09" + good[2:],
                Datagrams(Keyring((FOREIGN_KEY,)), EVE).seal(ann.boot, ping()),
                eve.seal("dd" * 8, ping()),
                bytes(forged),
                eve.seal(ann.boot, b"\x14\xc1nonsense"),
                eve.seal(ann.boot, dump(SyncOffer((), ()))),
            ):
                sock.send(data)
            await until(lambda: ann.gossip.statistics().packets_in == 8)
            await asyncio.sleep(0.1)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        assert rejected(ann) == {
            "short": 2,
            "magic": 1,
            "key": 1,
            "addressee": 1,
            "forged": 1,
            "malformed": 2,
        }
        assert ann.gossip.statistics().packets_out == 0
    assert set(ann.members) <= {ann.boot}


async def test_a_replayed_packet_is_handled_once():
    quiet = Quiet()
    ann = Node(decider=quiet)
    async with running(ann):
        data = Datagrams(KEYRING, EVE).seal(ann.boot, ping())
        with stranger(ann) as sock:
            for _ in range(5):
                sock.send(data)
            await until(lambda: ann.gossip.statistics().packets_in == 5)
    assert [type(e) for e in quiet.events] == [PacketArrived]
    assert quiet.events[0].boot == EVE
    assert rejected(ann) == {"replay": 4}


async def test_keys_are_rotated_while_everybody_stays():
    ann = Node(keys=(KEY, NEW_KEY))
    async with running(ann):
        bob, cat = Node(ann.seed, keys=(NEW_KEY, KEY)), Node(ann.seed, keys=(FOREIGN_KEY,))
        async with running(bob, cat):
            await until(lambda: bob.boot in ann.alive() and ann.boot in bob.alive())
            await until(lambda: cat.gossip.statistics().syncs_failed)
        assert cat.boot not in ann.members
        assert ann.gossip.statistics().connections_refused >= 1


async def test_a_flood_does_not_starve_the_timers():
    quiet = Quiet()
    ann = Node(decider=quiet)
    quiet.react = lambda event: setattr(quiet, "due", quiet.due + 0.02) or []
    head = Datagrams(KEYRING, EVE).seal(ann.boot, b"")
    rng = random.Random(1)
    end = threading.Event()

    def flood():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not end.is_set():
                for _ in range(50):
                    data = head[:6] + rng.randbytes(8) + head[14:22] + rng.randbytes(60)
                    sock.sendto(data, ann.address)
                time.sleep(0.001)

    quiet.due = time.monotonic()
    async with running(ann):
        flooding = threading.Thread(target=flood)
        flooding.start()
        await asyncio.sleep(0.6)
        end.set()
        flooding.join()
        assert rejected(ann)["forged"] > 100
    assert sum(isinstance(e, TimePassed) for e in quiet.events) > 8


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n" + bytes(200), bytes(2000), b"\xb1\x01" * 90]
)
async def test_garbage_is_cut_off_without_an_answer(data):
    ann = Node(decider=Quiet())
    async with running(ann):
        with socket.create_connection(ann.address) as sock:
            sock.setblocking(False)
            sock.send(data)
            assert await closed_without_answer(sock, 1.5)
        await until(lambda: ann.gossip.statistics().connections_refused == 1)


async def test_whoever_says_nothing_is_cut_off_in_time():
    ann = Node(decider=Quiet())
    async with running(ann):
        with socket.create_connection(ann.address) as sock:
            sock.setblocking(False)
            started = time.monotonic()
            for byte in ClientHandshake(KEYRING, EVE, Purpose.LINK).hello[:20]:
                sock.send(bytes([byte]))
                await asyncio.sleep(0.01)
            assert await closed_without_answer(sock)
            assert 1.5 < time.monotonic() - started < 5


async def test_a_replayed_hello_gets_no_further():
    ann = Node(decider=Quiet())
    hello = ClientHandshake(KEYRING, EVE, Purpose.LINK).hello
    loop = asyncio.get_running_loop()
    async with running(ann):
        with socket.create_connection(ann.address) as sock:
            sock.setblocking(False)
            sock.send(hello)
            assert await asyncio.wait_for(loop.sock_recv(sock, 1000), 2.0)
            sock.send(bytes(32))
            assert await closed_without_answer(sock, 1.5)
        assert not ann.links
        assert ann.gossip.statistics().connections_accepted == 0


async def test_strangers_that_hold_every_place_do_not_keep_members_out(monkeypatch):
    monkeypatch.setattr(streams, "MAX_HANDSHAKES", 4)
    ann = Node(decider=Quiet())
    async with running(ann):
        held = [socket.create_connection(ann.address) for _ in range(12)]
        sock, _, boot = await connect_secure(ann.address, KEYRING, EVE, Purpose.LINK)
        sock.close()
        assert boot == ann.boot
        await until(lambda: ann.gossip.statistics().connections_refused >= 8)
        for sock in held:
            sock.close()


async def test_stopping_cuts_off_whoever_is_connected():
    ann = Node(decider=Quiet())
    async with running(ann):
        silent = socket.create_connection(ann.address)
        silent.setblocking(False)
        sock, _, _ = await connect_secure(ann.address, KEYRING, EVE, Purpose.SYNC)
        await asyncio.sleep(0.05)
    with silent, sock:
        assert await closed_without_answer(silent, 1.0)
        assert await closed_without_answer(sock, 1.0)


async def test_syncs_are_capped(monkeypatch):
    monkeypatch.setattr(streams, "MAX_TAKEN", 2)
    ann = Node(decider=Quiet())
    async with running(ann):
        socks = [
            (await connect_secure(ann.address, KEYRING, f"{n:016x}", Purpose.SYNC))[0]
            for n in range(3)
        ]
        await until(lambda: ann.gossip.statistics().syncs_failed == 1)
        for sock in socks:
            sock.close()
        await until(lambda: ann.gossip.statistics().syncs_failed == 3)


@pytest.mark.parametrize("what", [b"", b"\x15", b"\x15\xc1", dump(SyncAnswer((), (), ())), b"\x63"])
async def test_a_member_that_talks_nonsense_in_a_sync_is_cut_off(what):
    quiet = Quiet()
    ann = Node(decider=quiet)
    async with running(ann):
        sock, session, _ = await connect_secure(ann.address, KEYRING, EVE, Purpose.SYNC)
        with sock:
            await send_record(sock, session, what)
            assert await closed_without_answer(sock, 2.0)
        await until(lambda: ann.gossip.statistics().syncs_failed == 1)
    assert not quiet.events


async def test_a_sync_that_nobody_finishes_ends(monkeypatch):
    monkeypatch.setattr(streams, "SYNC_S", 0.2)
    quiet = Quiet()
    ann = Node(decider=quiet)
    quiet.react = lambda event: (
        [AnswerSync(event.exchange, SyncAnswer((), (), ()))]
        if isinstance(event, SyncOffered)
        else []
    )
    async with running(ann):
        sock, session, _ = await connect_secure(ann.address, KEYRING, EVE, Purpose.SYNC)
        with sock:
            await send_record(sock, session, dump(SyncOffer((), ())))
            assert await receive_record(sock, session, 1000) == dump(SyncAnswer((), (), ()))
            assert await closed_without_answer(sock, 2.0)
    assert [type(e) for e in quiet.events] == [SyncOffered]


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 1), ("localhost", 9), ("x", 9), ("::1", 1 << 17)]
)
async def test_a_sync_that_cannot_be_begun_fails_later_and_once(address):
    quiet = Quiet()
    ann = Node(decider=quiet)
    quiet.due = 0.0

    def react(event):
        if quiet.due is None:
            return []
        quiet.due = None
        return [StartSync(7, address, SyncOffer((), ()))]

    quiet.react = react
    async with running(ann):
        await until(lambda: len(quiet.events) == 2)
    assert quiet.events[1] == SyncFailed(7, address)


async def test_packets_that_cannot_be_sent_are_counted_only():
    quiet = Quiet()
    ann = Node(decider=quiet)
    packet = Packet(PacketKind.PING, 1, Digest(EVE, 0, 0))
    huge = packet._replace(target="x" * 65_480)
    odd = packet._replace(seq=1 << 70)
    sends = [
        SendPacket(EVE, ("localhost", 9), packet),
        SendPacket(EVE, ("127.0.0.1", 0), packet),
        SendPacket(EVE, ("127.0.0.1", 1 << 20), packet),
        SendPacket(EVE, ("127.0.0.1", -1), packet),
        SendPacket(EVE, ("::1", 9), packet),
        SendPacket("not a boot", ("127.0.0.1", 9), packet),
        SendPacket(EVE, ("127.0.0.1", 9), huge),
        SendPacket(EVE, ("127.0.0.1", 9), odd),
    ]
    quiet.react = lambda event: sends
    async with running(ann):
        ann.gossip.link_broke("x")
        await until(lambda: ann.gossip.statistics().packets_unsent == len(sends))


async def test_a_defect_that_a_packet_hits_is_logged_and_contained(caplog):
    quiet = Quiet()

    def react(event):
        raise RuntimeError("a defect")

    quiet.react = react
    ann = Node(decider=quiet)
    await ann.gossip.start()
    ann.port = ann.gossip._core._udp.sock.getsockname()[1]
    eve = Datagrams(KEYRING, EVE)
    with stranger(ann) as sock:
        for _ in range(3):
            sock.send(eve.seal(ann.boot, ping()))
        await until(lambda: ann.gossip.statistics().faults == 3)
    await ann.gossip.stop()
    assert not ann.failures
    assert caplog.text.count("gossip_fault") == 3


async def test_rumours_of_a_member_with_nonsense_in_them_do_no_harm():
    ann = Node()
    async with running(ann):
        bob = Node(ann.seed)
        async with running(bob):
            await until(lambda: bob.boot in ann.alive())
            eve = Datagrams(KEYRING, EVE)
            odd = [
                Rumour(boot, "n" * 500, host, port, -5, incarnation, status, "zz")
                for boot in ("", "short", ann.boot, bob.boot, "ab" * 8)
                for host in ("", "localhost", "::1%", "256.1.1.1")
                for port in (-1, 0, 1 << 40)
                for incarnation in (-1, (1 << 63) - 1, (1 << 64) - 1)
                for status in (Status.ALIVE, Status.DEAD)
            ]
            with stranger(ann) as sock:
                for seq, claim in enumerate(odd):
                    packet = Packet(PacketKind.GOSSIP, seq, Digest(EVE, 0, 0), rumours=(claim,))
                    sock.send(eve.seal(ann.boot, dump(packet)))
                    await asyncio.sleep(0)
                before = ann.gossip.statistics().packets_in
                await until(lambda: ann.gossip.statistics().packets_in > before + 3)
            await until(lambda: bob.boot in ann.alive() and ann.boot in bob.alive())
