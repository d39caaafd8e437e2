"""The testbed: hosts that are namespaces, cables of a given rate, and nothing left of either."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.support import barerelay, netns
from tests.support.nodes import PATIENCE_S, ROOT, is_gone, until
from tests.support.testbed import Spec, testbed

SCRIPT = str(ROOT / "scripts/testbed")
RATE_MBIT = 200.0


@pytest.fixture(autouse=True)
def permitted(tmp_path, monkeypatch):
    """Say loudly where it cannot be tried; let folders be made where nobody else's are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        netns.check_permitted()
    except netns.NotPermitted as error:
        pytest.skip(f"NO TESTBED HERE, so it was not tried: {error}")


def traces(name):
    """All that there is of a testbed."""
    places = (netns.NAMESPACES, netns.CPU_GROUPS, netns.MEMORY)
    return [path for place in places for path in netns.found(place, name)]


def script(*arguments):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def brought_up(*options):
    """A testbed of a process of its own, and its name."""
    process = script("up", "--nodes", "2", *options)
    name = process.stdout.readline().split()[0]
    assert name.startswith(f"{netns.PREFIX}{process.pid}-")
    return process, name


def test_a_chain_takes_the_time_of_its_cables_and_each_gets_the_bytes_once(tmp_path):
    size = 5_000_000
    with testbed(Spec(3, RATE_MBIT, fast=((1, 2),))) as bed:
        before = [bed.counters(node) for node in range(3)]
        took_s = barerelay.chain(bed, size, range(3))
        after = [bed.counters(node) for node in range(3)]
        fast = bed.counters(1, "fast1")
        made = traces(bed.name)
    bursts = 2 * 512 * 1024  # one at each end goes out at once
    assert took_s > (size - bursts) * 8 / (RATE_MBIT * 1e6)
    received = [b.received - a.received for a, b in zip(before, after, strict=True)]
    sent = [b.sent - a.sent for a, b in zip(before, after, strict=True)]
    assert all(size <= count < 1.06 * size for count in (*received[1:], *sent[:2]))
    assert received[0] < 0.1 * size
    assert sent[2] < 0.1 * size
    assert fast.sent == 0, "there is no way to the further cable but by its own addresses"
    assert len(made) == 4 + 3, "a switch and three nodes; a folder in memory for each"
    assert traces(bed.name) == []
    assert [*tmp_path.iterdir()] == []


def test_nodes_answer_http_from_inside_and_it_costs_no_cable(tmp_path):
    (tmp_path / "facts.json").write_text('{"here": 1}')
    with testbed(Spec(2, RATE_MBIT)) as bed:
        address = bed.address(1)
        words = [sys.executable, "-m", "http.server", "8000", "--bind", address]
        bed.start(1, [*words, "--directory", str(tmp_path)], {})

        def answer():
            try:
                return bed.request(1, 8000, "GET", "/facts.json")
            except OSError:
                return None

        assert until(answer, "an answer") == (200, {"here": 1})
        assert bed.request(1, 8000, "GET", "/nothing")[0] == 404
        assert bed.counters(1).received < 2000, "a question for an address now and then"
        with pytest.raises(OSError, match="refused"):
            bed.request(0, 8000, "GET", "/facts.json")


def test_what_runs_in_a_node_is_in_its_group_and_ends_with_the_testbed():
    with testbed(Spec(1, RATE_MBIT, cores=0.5)) as bed:
        process = bed.start(0, ["sh", "-c", "sleep 600 & sleep 600"], {})
        pids = until(
            lambda: len(found := netns.members(bed.namespace(0))) == 3 and found, "processes"
        )
        group = netns.CPU_GROUPS / f"{bed.name}-n0"
        period_us = int((group / "cpu.cfs_period_us").read_text())
        assert int((group / "cpu.cfs_quota_us").read_text()) == period_us // 2
        assert sorted(map(int, (group / "cgroup.procs").read_text().split())) == sorted(pids)
        assert process.pid in pids
    assert all(is_gone(pid) for pid in pids)
    assert traces(bed.name) == []


def test_an_exception_leaves_nothing(tmp_path):
    made = []

    def fail():
        with testbed(Spec(2, RATE_MBIT)) as bed:
            made.extend([bed.name, bed.start(1, ["sleep", "600"], {})])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    name, process = made
    assert process.poll() is not None
    assert traces(name) == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupt_leaves_nothing(tmp_path, number, code):
    process, name = brought_up()
    try:
        assert len(traces(name)) == 3 + 2
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err.strip()) == (code, ""), out
    assert traces(name) == []
    assert [*tmp_path.iterdir()] == []


def test_an_interrupt_while_it_is_made_leaves_nothing(tmp_path):
    process = script("up", "--nodes", "32")
    name = f"{netns.PREFIX}{process.pid}-"
    try:
        until(lambda: len(traces(name)) > 8, "some of it")
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)  # impatience changes nothing
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert traces(name) == []
    assert [*tmp_path.iterdir()] == []


def test_what_a_killed_one_leaves_is_cleaned_away_and_nothing_else(tmp_path):
    with testbed(Spec(1, RATE_MBIT)) as living:
        process, name = brought_up("--cores", "1")
        sleeper = subprocess.Popen(["ip", "netns", "exec", f"{name}-n1", "sleep", "600"])
        try:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
            assert "left behind" in script("status").communicate(timeout=PATIENCE_S)[0]
            out, err = script("clean").communicate(timeout=PATIENCE_S)
            assert out.startswith("removed "), "it may have found those of others, too"
            assert err == ""
            assert sleeper.wait(PATIENCE_S) == -signal.SIGKILL
        finally:
            sleeper.kill()
            sleeper.wait()
        assert traces(name) == []
        assert not list(tmp_path.glob(f"{name}*"))
        assert len(traces(living.name)) == 2 + 1


def test_a_command_is_told_of_it_and_its_status_is_passed_on():
    text = "import os, sys; print(os.environ['BLITZGW_TESTBED']); sys.exit(5)"
    process = script("run", "--nodes", "2", "--fast", "0-1", "--", sys.executable, "-c", text)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5, err
    told = json.loads(out)
    assert [node["address"] for node in told["nodes"]] == ["10.77.0.1", "10.77.0.2"]
    assert [node["fast_address"] for node in told["nodes"]] == ["10.78.1.1", "10.78.1.2"]
    assert traces(told["name"]) == []


def test_where_it_is_not_permitted_it_says_so_and_exits_with_a_status_of_its_own(tmp_path):
    tmp_path.chmod(0o755)
    prefix = ["setpriv", "--reuid", "65534", "--clear-groups"]
    done = subprocess.run(
        [*prefix, sys.executable, SCRIPT, "up"], capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr.startswith("SKIPPED, ")
    assert "root" in done.stderr


def test_mistakes_are_named():
    for options, word in (
        (["--fast", "1"], "pair"),
        (["--fast", "1-9"], "0 to 3"),
        (["--nodes", "65"], "64"),
    ):
        process = script("up", *options)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert word in err


def test_names_tell_whose_they_are():
    own = netns.new_name()
    assert not netns.is_orphan(f"{own}-n0")
    assert netns.new_name() != own
    pid, ticks = own.removeprefix(netns.PREFIX).split("-")[:2]
    assert netns.is_orphan(f"{netns.PREFIX}{pid}-{int(ticks) + 1}-0-n0"), "of an earlier process"
    for foreign in ("bgw-me", "bgw-x-y-z", "bgw-", "other-1-2-3"):
        assert not netns.is_orphan(foreign)
