"""Host copies: real files, several processes, crashes, full memory, folders of others."""

import errno
import gc
import mmap
import os
import re
import signal
import threading
import uuid
import weakref
from pathlib import Path

import pytest

from blitzgw.core.layout import SLAB_ALIGNMENT, blob_layouts, slab_offsets
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.errors import HostCopyError
from blitzgw.weights import hostcache
from blitzgw.weights.hostcache import HostCopies, default_folder
from tests.weights.copies_kit import SIZES, WEIGHTS, Little, Other

SHM = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "copies"


@pytest.fixture
def shared_folder():
    """A folder in real shared memory."""
    if not os.access(SHM, os.W_OK):
        pytest.skip("needs /dev/shm: none that can be written to")
    folder = SHM / f"blitzgw-test-{uuid.uuid4().hex}"
    yield folder
    for file in folder.glob("*") if folder.exists() else ():
        file.unlink()
    if folder.exists():
        folder.rmdir()


def opened(copies, little, weights=WEIGHTS, **options):
    return copies.open(weights, little.layouts, little.digests, **options)


def created(copies, little, weights=WEIGHTS):
    return copies.create(weights, little.layouts, little.digests)


def test_a_slab_gives_each_blob_pages_of_its_own():
    shape = ModelShape("llama", 3, 16, 2, 1, 8, 24, 301, 1e-5, Rope(), 256, False)
    layouts = blob_layouts(shape, Dtype.BFLOAT16)
    offsets, total = slab_offsets(layouts)
    assert offsets[0] == 0
    ends = [at + layout.size_bytes for at, layout in zip(offsets, layouts, strict=True)]
    for at, before in zip((*offsets[1:], total), ends, strict=True):
        assert at % SLAB_ALIGNMENT == 0
        assert 0 <= at - before < SLAB_ALIGNMENT


def test_what_was_filled_is_what_is_mapped(folder):
    little, copies = Little(), HostCopies(folder)
    assert opened(copies, little) is None
    copy = created(copies, little)
    assert not copy.is_complete
    assert len(copy.memory) == slab_offsets(little.layouts)[1]
    little.fill(copy, [1, 0, 3])
    assert copy.checked == {0, 1, 3}
    assert opened(copies, little) is None
    copy.buffer(2)[:] = little.right[2]
    assert copy.mark(2)
    assert copy.is_complete
    for private in (True, False):
        mapped = opened(copies, little, private=private)
        assert mapped.is_complete
        assert mapped.weights == WEIGHTS
        assert [bytes(mapped.buffer(i)) for i in range(len(SIZES))] == little.right


def test_a_copy_outlives_who_filled_it(folder):
    little = Little()
    created(HostCopies(folder), little).close()
    with Other(folder, "s = little(); s.fill(copies.create(WEIGHTS, s.layouts, s.digests))") as it:
        assert it.process.wait(20) == 0
    assert bytes(opened(HostCopies(folder), little).buffer(3)) == little.right[3]


def test_writes_to_a_private_map_stay_in_the_process(folder):
    little, copies = Little(), HostCopies(folder)
    little.fill(created(copies, little))
    mapped = opened(copies, little)
    mapped.memory[0] ^= 0xFF
    assert mapped.memory[0] != little.right[0][0]
    assert opened(copies, little).memory[0] == little.right[0][0]


def test_folder_and_files_are_the_owners_alone(folder):
    created(HostCopies(folder), Little())
    (file,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.name == f"{WEIGHTS}.blobs"


def test_the_default_folder_names_the_user():
    assert default_folder() == SHM / f"blitzgw-{os.geteuid()}"


def test_a_linked_folder_is_refused(tmp_path, folder):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    copies, little = HostCopies(folder), Little()
    for use in (copies.list, lambda: opened(copies, little), lambda: created(copies, little)):
        with pytest.raises(HostCopyError, match="symbolic link"):
            use()
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_write_to_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(HostCopyError, match="this user alone"):
        created(HostCopies(folder), Little())


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    created(HostCopies(folder), Little()).close()
    owner = folder.stat().st_uid
    monkeypatch.setattr(hostcache.os, "geteuid", lambda: owner + 1)
    with pytest.raises(HostCopyError, match=f"belongs to user {owner}"):
        HostCopies(folder).list()


def test_a_linked_file_is_refused(tmp_path, folder):
    folder.mkdir(mode=0o700)
    (tmp_path / "precious").write_bytes(b"precious")
    (folder / f"{WEIGHTS}.blobs").symlink_to(tmp_path / "precious")
    copies, little = HostCopies(folder), Little()
    for use in (lambda: opened(copies, little), lambda: created(copies, little)):
        with pytest.raises(HostCopyError, match="cannot be opened"):
            use()
    assert copies.list() == []
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("weights", ["", "../up", "a/b", "a.b", "x" * 129])
def test_names_never_lead_out_of_the_folder(folder, weights):
    copies, little = HostCopies(folder), Little()
    for use in (opened, created):
        with pytest.raises(ValueError, match="name weights"):
            use(copies, little, weights)
    with pytest.raises(ValueError, match="name weights"):
        copies.remove(weights)


def test_digests_of_another_layout_are_a_mistake(folder):
    little = Little()
    for digests in (Little((1, 2)).digests, [], little.digests[:-1]):
        with pytest.raises(ValueError, match="digests"):
            HostCopies(folder).create(WEIGHTS, little.layouts, digests)
    assert not folder.exists()


def test_without_a_folder_there_are_no_copies(folder):
    copies = HostCopies(folder)
    assert copies.list() == []
    assert not copies.remove(WEIGHTS)
    assert copies.sweep(set()) == []
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path):
    with pytest.raises(HostCopyError, match="copies_dir"):
        created(HostCopies(tmp_path / "no" / "such"), Little())


def test_only_one_fills_a_copy(folder, monkeypatch):
    monkeypatch.setattr(hostcache, "LOCK_PATIENCE_S", 0.05)
    little, copies = Little(), HostCopies(folder)
    copy = created(copies, little)
    with pytest.raises(HostCopyError, match="another worker"):
        created(copies, little)
    copy.close()
    assert not created(copies, little).is_complete


def test_views_of_a_closed_copy_stay_good_and_do_not_lock_it(folder):
    little, copies = Little(), HostCopies(folder)
    copy = created(copies, little)
    view = copy.buffer(0)
    copy.close()
    copy.close()
    again = created(copies, little)
    again.buffer(0)[:] = little.right[0]
    assert bytes(view) == little.right[0]
    with pytest.raises(ValueError, match="closed"):
        copy.buffer(0)
    assert not copy.mark(0)
    copy.unmark(0)
    assert again.checked == frozenset()


def test_what_a_filler_left_is_checked_again_before_it_counts(folder):
    little, copies = Little(), HostCopies(folder)
    copy = created(copies, little)
    little.fill(copy, [0, 2])
    copy.close()
    again = created(copies, little)
    assert again.checked == {0, 2}
    assert bytes(again.buffer(2)) == little.right[2]
    little.fill(again, [1, 3])
    assert again.checked == {0, 1, 2, 3}
    assert not again.is_complete
    again.unmark(2)
    assert again.checked == {0, 1, 3}
    again.mark(0)
    assert not again.is_complete
    little.fill(again, [2])
    assert again.is_complete


def test_a_complete_copy_that_was_found_damaged_is_filled_again(folder):
    little, copies = Little(), HostCopies(folder)
    little.fill(created(copies, little))
    for private in (True, False):
        mapped = opened(copies, little, private=private)
        mapped.unmark(1)
        assert opened(copies, little) is None
        again = created(copies, little)
        assert again.checked == {0, 2, 3}
        little.fill(again)
        assert again.is_complete


def test_a_complete_copy_can_be_created_by_many(folder):
    little, copies = Little(), HostCopies(folder)
    little.fill(created(copies, little))
    both = [created(copies, little) for _ in range(2)]
    assert all(copy.is_complete for copy in both)


def test_a_killed_filler_leaves_what_it_had(shared_folder):
    little = Little((3 << 20, 5 << 20, 100))
    script = """
s = little((3 << 20, 5 << 20, 100))
copy = copies.create(WEIGHTS, s.layouts, s.digests)
s.fill(copy, [0, 2])
copy.buffer(1)[:1000] = s.right[1][:1000]
say("half")
time.sleep(60)
"""
    copies = HostCopies(shared_folder)
    with Other(shared_folder, script) as filler:
        assert filler.hears() == "half"
        assert [(file.filling, file.complete) for file in copies.list()] == [(True, False)]
        assert copies.sweep(set()) == []
        filler.process.send_signal(signal.SIGKILL)
        filler.process.wait(20)
    assert [(file.filling, file.complete) for file in copies.list()] == [(False, False)]
    assert opened(copies, little) is None
    copy = created(copies, little)
    assert copy.checked == {0, 2}
    assert [bytes(copy.buffer(i)) for i in (0, 2)] == [little.right[i] for i in (0, 2)]
    little.fill(copy)
    assert bytes(opened(copies, little).buffer(1)) == little.right[1]


def test_a_filler_killed_before_the_footer_leaves_nothing_that_counts(folder):
    little, copies = Little(), HostCopies(folder)
    created(copies, little).close()
    (file,) = folder.iterdir()
    size = file.stat().st_size
    file.write_bytes(bytes(size))
    assert opened(copies, little) is None
    assert created(copies, little).checked == frozenset()


@pytest.mark.parametrize("spoil", ["cut", "grown", "foreign", "other digests"])
def test_a_file_of_another_form_is_replaced_not_changed(folder, spoil):
    little, copies = Little(), HostCopies(folder)
    other = Little(seed=2) if spoil == "other digests" else little
    little.fill(created(copies, little))
    mapped = opened(copies, little)
    (file,) = folder.iterdir()
    if spoil == "cut":
        os.truncate(file, file.stat().st_size - SLAB_ALIGNMENT)
    elif spoil == "grown":
        os.truncate(file, file.stat().st_size + 1)
    elif spoil == "foreign":
        file.write_bytes(b"x" * 100_000)
    assert opened(copies, other) is None
    copy = created(copies, other)
    assert copy.checked == frozenset()
    assert not any(copy.memory)
    if spoil == "other digests":
        assert bytes(mapped.buffer(0)) == little.right[0]


def test_full_memory_is_an_error_at_once_and_leaves_nothing(folder, monkeypatch):
    def full(fd, offset, size):
        os.pwrite(fd, b"some", offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hostcache.os, "posix_fallocate", full)
    copies = HostCopies(folder)
    with pytest.raises(HostCopyError, match=r"MB left: make the tmpfs larger.*copies_dir") as told:
        created(copies, Little())
    assert hostcache.NO_ROOM in str(told.value)
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    assert created(copies, Little()).checked == frozenset()


def test_a_limit_on_the_size_of_files_is_told_as_lack_of_room(folder):
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
s = little()
try:
    copies.create(WEIGHTS, s.layouts, s.digests)
except Exception as error:
    say(type(error).__name__)
"""
    with Other(folder, script) as it:
        assert it.hears() == "HostCopyError"
    assert list(folder.iterdir()) == []


def test_a_refused_call_is_translated(folder, monkeypatch):
    def refused(fd, offset, size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hostcache.os, "posix_fallocate", refused)
    with pytest.raises(HostCopyError, match="cannot be made"):
        created(HostCopies(folder), Little())


def test_list_says_what_there_is(folder):
    little, copies = Little(), HostCopies(folder)
    little.fill(created(copies, little, "b" * 64))
    copy = created(copies, little, "a" * 64)
    (folder / "notes.txt").write_text("not ours")
    (folder / "pipe.blobs").mkdir()
    os.mkfifo(folder / "fifo.blobs")
    first, second = copies.list()
    assert (first.weights, first.complete, first.filling) == ("a" * 64, False, True)
    assert (second.weights, second.complete, second.filling) == ("b" * 64, True, False)
    assert first.size_bytes >= copy.size_bytes > sum(SIZES)


def test_removed_copies_stay_with_those_who_have_them(folder):
    little, copies = Little(), HostCopies(folder)
    little.fill(created(copies, little))
    mapped = opened(copies, little)
    assert copies.remove(WEIGHTS)
    assert not copies.remove(WEIGHTS)
    assert copies.list() == []
    assert opened(copies, little) is None
    assert bytes(mapped.buffer(0)) == little.right[0]


def test_removing_a_copy_under_its_filler_harms_neither_it_nor_the_next(folder):
    little, copies = Little(), HostCopies(folder)
    first = created(copies, little)
    copies.remove(WEIGHTS)
    second = created(copies, little)
    little.fill(first)
    assert not second.checked
    assert opened(copies, little) is None
    little.fill(second)
    assert opened(copies, little) is not None


def test_sweep_takes_what_nobody_wants(folder):
    little, copies = Little(), HostCopies(folder)
    for name in "abc":
        little.fill(created(copies, little, name * 64))
    created(copies, little, "d" * 64).close()  # half made, by nobody any more
    filling = created(copies, little, "e" * 64)
    (folder / "notes.txt").write_text("not ours")
    assert copies.sweep({"b" * 64}) == ["a" * 64, "c" * 64, "d" * 64]
    assert [file.weights for file in copies.list()] == ["b" * 64, "e" * 64]
    assert (folder / "notes.txt").exists()
    little.fill(filling)
    assert opened(copies, little, "e" * 64) is not None


def test_fillers_and_sweepers_never_meet_in_one_file(folder, monkeypatch):
    """Threads create, fill, sweep and list at once: each copy that is filled is whole or gone."""
    monkeypatch.setattr(hostcache, "LOCK_PATIENCE_S", 20.0)
    little, copies, errors = Little(), HostCopies(folder), []
    stop = threading.Event()

    def guarded(work):
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    def fill():
        copy = created(copies, little)
        little.fill(copy)
        copy.close()
        mapped = opened(copies, little)
        if mapped is not None:
            assert [bytes(mapped.buffer(i)) for i in range(len(SIZES))] == little.right

    works = [fill, fill, lambda: copies.sweep(()), copies.list]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    stop.wait(0.5)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert errors == []


def mapped_kb(pid, inode):
    """Return the kB of a process's maps of a file: in all, shared with others, and copied."""
    kinds = ("Rss", "Shared_Clean", "Shared_Dirty", "Anonymous")
    found = dict.fromkeys(kinds, 0)
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.split()[4] == str(inode)
        elif ours and (kind := line.split(":")[0]) in found:
            found[kind] += int(line.split()[1])
    rss, clean, dirty, copied = found.values()
    return rss, clean + dirty, copied


def test_processes_share_the_pages_of_a_copy(shared_folder):
    sizes = (8 << 20, 8 << 20)
    whole_kb = sum(sizes) >> 10
    little, copies = Little(sizes), HostCopies(shared_folder)
    little.fill(created(copies, little))
    script = """
s = little((8 << 20, 8 << 20))
copy = copies.open(WEIGHTS, s.layouts, s.digests)
assert [bytes(copy.buffer(i)) for i in range(2)] == s.right
say("read")
sys.stdin.readline()
copy.buffer(0)[: 1 << 20] = bytes(1 << 20)
say("written")
time.sleep(60)
"""
    with Other(shared_folder, script) as one, Other(shared_folder, script) as two:
        assert [one.hears(), two.hears()] == ["read", "read"]
        inode = (shared_folder / f"{WEIGHTS}.blobs").stat().st_ino
        for other in (one, two):
            assert mapped_kb(other.pid, inode) == (whole_kb, whole_kb, 0)
        one.process.stdin.write("\n")
        one.process.stdin.flush()
        assert one.hears() == "written"
        assert mapped_kb(one.pid, inode)[2] == 1024
        assert mapped_kb(two.pid, inode)[2] == 0
    assert bytes(opened(copies, little).buffer(0)) == little.right[0]


def test_a_dropped_copy_is_unmapped(folder):
    little, copies = Little(), HostCopies(folder)
    little.fill(created(copies, little))
    gc.disable()  # by counting alone: nothing goes in circles
    try:
        copy = opened(copies, little)
        mapped = weakref.ref(copy.memory.obj)
        assert isinstance(mapped(), mmap.mmap)
        view = copy.buffer(1)
        copy.close()
        assert mapped() is not None
        del view
        assert mapped() is None
    finally:
        gc.enable()


def test_one_process_at_a_time_owns_the_folder(tmp_path):
    folder = tmp_path / "copies"
    first, second = HostCopies(folder), HostCopies(folder)
    assert first.own()
    assert first.own()
    assert not second.own()
    first.disown()
    assert second.own()
    assert second.list() == []
    second.disown()
    assert not folder.exists(), "nothing is left of an empty folder"


def test_a_folder_with_a_copy_stays_when_nobody_owns_it(tmp_path):
    copies = HostCopies(tmp_path / "copies")
    assert copies.own()
    (copies.folder / "left.blobs").write_bytes(b"x")
    copies.disown()
    assert (copies.folder / "left.blobs").exists()
    assert copies.own()
    copies.disown()
