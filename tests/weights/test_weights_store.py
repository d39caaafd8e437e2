"""The store: prefixes, waiters, checks on its own thread, and what happens when it is given up."""

import random
import threading
import time

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import BlobStore, StoreClosed
from blitzgw.weights import hashes
from blitzgw.weights.store import HASH_BYTES, WeightStore

PATIENCE_S = 20.0


class Held:
    """A store over memory of its own, and what it has announced."""

    def __init__(self, sizes, seed=1):
        rng = random.Random(seed)
        self.right = [rng.randbytes(size) for size in sizes]
        self.memory = [bytearray(size) for size in sizes]
        digests = [BlobDigest(len(data), blake3(data).digest(), 0) for data in self.right]
        self.checked, self.damaged = [], []
        self.told = threading.Condition()
        self.store = WeightStore("f" * 64, digests, self.buffer, self.on_checked, self.on_damaged)

    def buffer(self, index):
        return memoryview(self.memory[index])

    def on_checked(self, index):
        with self.told:
            self.checked.append(index)
            self.told.notify_all()

    def on_damaged(self, index, source):
        with self.told:
            self.damaged.append((index, source))
            self.told.notify_all()

    def bring(self, index, start, stop, source="edge", flip=None):
        data = bytearray(self.right[index][start:stop])
        if flip is not None:
            data[flip] ^= 1
        if self.store.is_free(index):
            self.store.begin(index, source)
        self.store.view(index)[start:stop] = data
        self.store.advance(index, start, stop, source)

    def fill(self, index, source="disk", checked=False):
        """Hand over a blob that `memory` has by now."""
        assert self.store.begin(index, source)
        self.store.filled(index, source, checked=checked)

    def until(self, condition):
        with self.told:
            assert self.told.wait_for(condition, PATIENCE_S), (self.checked, self.damaged)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.store.close()
        assert self.store.join(PATIENCE_S)


def in_thread(work):
    """Run `work` on a thread; return it and the list that its result or error goes to."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def until_waiting(store, index, n=1):
    deadline = time.monotonic() + PATIENCE_S
    while not (changed := store._blobs[index].changed) or len(changed._waiters) < n:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_is_a_blob_store():
    with Held([10, 20]) as held:
        as_protocol: BlobStore = held.store
        assert as_protocol.weights == "f" * 64
        assert [as_protocol.size_bytes(i) for i in range(2)] == [10, 20]
        assert held.store.checked == frozenset()
        assert not held.store.is_complete


def test_announces_each_blob_once_and_only_when_its_last_byte_is_there():
    with Held([9, 5]) as held:
        held.bring(0, 0, 4)
        held.bring(1, 0, 5)
        held.until(lambda: held.checked == [1])
        assert held.store.resident_bytes(0) == 4
        assert held.store.checked == {1}
        held.bring(0, 4, 9)
        held.until(lambda: held.checked == [1, 0])
        assert held.store.is_complete
    assert held.checked == [1, 0]
    assert held.damaged == []


@pytest.mark.parametrize("span", [(0, 0), (1, 3), (0, 11), (4, 2), (-1, 2)])
def test_refuses_a_move_that_does_not_begin_at_the_prefix(span):
    with Held([10]) as held:
        held.store.begin(0)
        with pytest.raises(ValueError, match="blob 0"):
            held.store.advance(0, *span)
        assert held.store.resident_bytes(0) == 0


def test_refuses_more_of_a_whole_blob():
    with Held([10]) as held:
        held.bring(0, 0, 10)
        held.until(lambda: held.checked == [0])
        for move in (lambda: held.store.advance(0, 10, 11), lambda: held.store.filled(0)):
            with pytest.raises(ValueError, match="blob 0"):
                move()


def test_a_blob_has_one_filler_at_a_time():
    with Held([10, 10]) as held:
        store = held.store
        assert store.begin(0, "one")
        assert not store.begin(0, "one")
        assert not store.begin(0, "two", anew=True)
        assert not store.is_free(0)
        assert store.begin(1, "two")
        for move in (
            lambda: store.advance(0, 0, 5, "two"),
            lambda: store.filled(0, "two"),
            lambda: store.filled(0),
        ):
            with pytest.raises(ValueError, match="filled by 'one'"):
                move()
        store.end(0, "two")
        assert not store.begin(0, "two")
        held.bring(0, 0, 5, "one")
        store.end(0, "one")
        with pytest.raises(ValueError, match="filled by None"):
            held.store.advance(0, 5, 10, "one")
        assert store.begin(0, "two")
        with pytest.raises(ValueError, match="anew"):
            store.filled(0, "two")
        held.bring(0, 5, 10, "two")
        held.until(lambda: held.checked == [0])


def test_nobody_fills_a_whole_blob_and_anybody_one_that_was_emptied():
    with Held([10]) as held:
        held.bring(0, 0, 10, "one", flip=3)
        held.until(lambda: held.damaged)
        held.bring(0, 0, 10, "two")
        for anew in (True, False):
            assert not held.store.begin(0, "three", anew=anew)
        held.until(lambda: held.checked == [0])
        assert not held.store.begin(0, "three", anew=True)
        held.store.end(0, "two")
        assert held.memory[0] == held.right[0]


def test_a_blob_begun_anew_is_waited_for_again():
    with Held([10]) as held:
        held.bring(0, 0, 6)
        thread, results = in_thread(lambda: held.store.wait(0, 6, PATIENCE_S))
        until_waiting(held.store, 0)
        held.store.end(0, "edge")
        assert held.store.begin(0, "disk", anew=True)
        thread.join(PATIENCE_S)
        assert results == [0]


def test_refuses_blobs_without_bytes():
    with pytest.raises(ValueError, match="without bytes"):
        Held([1, 0])


def test_a_damaged_blob_is_emptied_told_and_may_come_again():
    with Held([HASH_BYTES * 2 + 17]) as held:
        size = len(held.right[0])
        held.bring(0, 0, HASH_BYTES, "first", flip=HASH_BYTES // 2)
        held.store.end(0, "first")
        held.bring(0, HASH_BYTES, size, "second")
        held.until(lambda: held.damaged)
        assert held.damaged == [(0, "second")]
        assert held.store.resident_bytes(0) == 0
        assert held.store.checked == frozenset()
        with pytest.raises(ValueError, match="0 of"):
            held.bring(0, HASH_BYTES, size)
        held.bring(0, 0, size)
        held.until(lambda: held.checked == [0])


def test_the_last_byte_of_a_blob_counts():
    with Held([100_000]) as held:
        held.bring(0, 0, 99_999)
        held.bring(0, 99_999, 100_000, "edge", flip=0)
        held.until(lambda: held.damaged == [(0, "edge")])


def test_waiters_see_the_prefix_grow():
    with Held([100]) as held:
        assert held.store.wait(0, 0, 0.0) == 0
        threads = [in_thread(lambda: held.store.wait(0, 10, PATIENCE_S)) for _ in range(4)]
        until_waiting(held.store, 0, 4)
        held.bring(0, 0, 10)
        held.bring(0, 10, 60)
        for thread, results in threads:
            thread.join(PATIENCE_S)
            assert results == [60]
        assert held.store.wait(0, 59, 0.0) == 60


def test_a_waiter_returns_what_there_is_after_its_time():
    with Held([100]) as held:
        held.bring(0, 0, 7)
        began = time.monotonic()
        assert held.store.wait(0, 7, 0.05) == 7
        assert held.store.wait(0, 50, 0.05) == 7
        assert time.monotonic() - began >= 0.1


def test_waiters_wake_when_the_blob_is_emptied():
    with Held([100]) as held:
        held.bring(0, 0, 99, flip=3)
        thread, results = in_thread(lambda: held.store.wait(0, 100, PATIENCE_S))
        until_waiting(held.store, 0)
        held.bring(0, 99, 100)
        thread.join(PATIENCE_S)
        assert results == [0]


def test_nobody_wakes_for_another_blob():
    with Held([100, 100]) as held:
        thread, results = in_thread(lambda: held.store.wait(1, 0, PATIENCE_S))
        until_waiting(held.store, 1)
        held.bring(0, 0, 100)
        held.until(lambda: held.checked == [0])
        assert thread.is_alive()
        held.bring(1, 0, 1)
        thread.join(PATIENCE_S)
        assert results == [1]


def test_close_frees_waiters_and_ends_the_thread():
    held = Held([100, HASH_BYTES])
    thread, results = in_thread(lambda: held.store.wait(0, 0, PATIENCE_S))
    until_waiting(held.store, 0)
    view = held.store.view(1)
    held.store.close()
    held.store.close()
    thread.join(PATIENCE_S)
    assert isinstance(results[0], StoreClosed)
    assert held.store.join(PATIENCE_S)
    for late in (
        lambda: held.store.wait(0, 0, 0.0),
        lambda: held.store.advance(0, 0, 1),
        lambda: held.store.filled(0),
        lambda: held.store.begin(0),
        lambda: held.store.view(0),
    ):
        with pytest.raises(StoreClosed):
            late()
    view[:] = bytes(len(view))  # who still writes does no harm


def test_close_while_hashing_announces_nothing_more():
    held = Held([HASH_BYTES * 3] * 2)
    for index in range(2):
        held.memory[index][:] = held.right[index]
        held.fill(index)
    held.store.close()
    assert held.store.join(PATIENCE_S)
    count = len(held.checked)
    time.sleep(0.02)
    assert len(held.checked) == count <= 1


def test_a_blob_filled_in_any_order_is_checked():
    with Held([3000, HASH_BYTES + 1]) as held:
        for index in (1, 0):
            held.memory[index][:] = held.right[index]
            held.fill(index)
        held.until(lambda: sorted(held.checked) == [0, 1])


def test_a_blob_filled_wrongly_is_damaged():
    with Held([3000]) as held:
        held.fill(0)
        held.until(lambda: held.damaged == [(0, "disk")])


def test_filling_a_blob_anew_forgets_what_was_hashed_of_it():
    with Held([HASH_BYTES * 2]) as held:
        held.bring(0, 0, HASH_BYTES)  # right, and hashed
        deadline = time.monotonic() + PATIENCE_S
        while held.store._blobs[0].hashed < HASH_BYTES:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        held.store.end(0, "edge")
        assert held.store.begin(0, "disk", anew=True)
        assert held.store.resident_bytes(0) == 0
        held.memory[0][:] = held.right[0]
        held.memory[0][5] ^= 1  # now wrong
        held.store.filled(0, "disk")
        held.until(lambda: held.damaged == [(0, "disk")])


def test_a_blob_known_to_be_checked_is_announced_without_a_hash(monkeypatch):
    monkeypatch.delattr(hashes.GrowingHashes, "add")  # a hash would raise
    with Held([100, 100]) as held:
        held.fill(1, checked=True)
        held.until(lambda: held.checked == [1])
        assert held.store.resident_bytes(1) == 100
        assert held.store.checked == {1}


def test_memory_that_cannot_be_looked_at_is_damage_not_silence(caplog):
    with Held([100]) as held:

        def no_memory(index):
            raise MemoryError

        held.store._buffer = no_memory
        held.fill(0)
        held.until(lambda: held.damaged == [(0, "disk")])
    assert "blob_not_hashed" in caplog.text


def test_a_callback_that_raises_stops_nothing(caplog):
    with Held([100, 100]) as held:
        held.store._on_checked = lambda index: (held.on_checked(index), 1 // 0)
        for index in range(2):
            held.bring(index, 0, 100)
        held.until(lambda: held.checked == [0, 1])
    assert caplog.text.count("store_callback_failed") == 2


def test_many_blobs_with_senders_on_each():
    n, senders = 4098, 3
    with Held([64] * n) as held:
        seen = [[] for _ in range(senders)]

        def send(out):
            for index in range(n):
                at = 0
                while at < 64:
                    at = held.store.wait(index, at, PATIENCE_S)
                out.append(bytes(held.store.view(index)))

        threads = [in_thread(lambda out=out: send(out)) for out in seen]
        for index in range(n):
            held.bring(index, 0, 40)
            held.bring(index, 40, 64)
        for thread, results in threads:
            thread.join(PATIENCE_S)
            assert results == [None]
        held.until(lambda: len(held.checked) == n)
        assert seen == [held.right] * senders
        assert held.store.is_complete


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_prefixes_and_announcements_follow_the_rules(data):
    """Any order of moves and damage: prefixes are exact, only right blobs are announced, once."""
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
    with Held(sizes) as held:
        at, n_damaged = [0] * len(sizes), 0
        for _ in range(data.draw(st.integers(1, 30))):
            index = data.draw(st.integers(0, len(sizes) - 1))
            if at[index] == sizes[index]:
                continue
            stop = data.draw(st.integers(at[index] + 1, sizes[index]))
            wrong = data.draw(st.booleans())
            held.bring(index, at[index], stop, "e", flip=0 if wrong else None)
            at[index] = stop
            right = bytes(held.memory[index]) == held.right[index]
            if stop == sizes[index] and not right:
                n_damaged += 1
                held.until(lambda n=n_damaged: len(held.damaged) == n)
                held.memory[index][:] = bytes(sizes[index])
                at[index] = 0
            assert held.store.resident_bytes(index) == at[index]
        whole = {i for i, size in enumerate(sizes) if at[i] == size}
        held.until(lambda: set(held.checked) >= whole)
        assert sorted(held.checked) == sorted(whole) == sorted(held.store.checked)
        assert all(bytes(held.memory[i]) == held.right[i] for i in held.checked)
        assert len(held.damaged) == n_damaged


def test_one_filler_of_each_blob_at_full_speed():
    """Several fillers and followers of one store, with damage now and then: all ends right."""
    sizes = [HASH_BYTES + 4096 * i for i in range(4)]
    with Held(sizes) as held:

        def fill(index):
            rng, spoilt = random.Random(index), False
            while index not in held.store.checked:
                at = held.store.resident_bytes(index)
                if at == sizes[index]:
                    time.sleep(0.001)
                    continue
                stop = min(sizes[index], at + rng.randrange(1, 1 << 18))
                flip = 0 if not spoilt and at > 1 << 20 else None
                spoilt = spoilt or flip is not None
                held.bring(index, at, stop, str(index), flip=flip)

        threads = [in_thread(lambda i=i: fill(i)) for i in range(len(sizes))]
        for thread, results in threads:
            thread.join(PATIENCE_S)
            assert results == [None]
        assert sorted(held.damaged) == [(i, str(i)) for i in range(4)]
        held.until(lambda: sorted(held.checked) == list(range(4)))
