"""The bench of transfers: its models, its rows, its verdicts and its plot, without a cluster."""

import hashlib
import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from blitzgw.weights.info import open_checkpoint
from tests.support import barerelay, multicast, netns
from tests.support.benchmodel import KEPT, bench_model, size_bytes, sizes
from tests.support.gateways import CONFIG, NETWORK, ONE_MODEL, ClusterFailed, Terms
from tests.support.multicast import OperationFailed, Setting
from tests.support.multicast_report import Verdict, error, plot, received, sent, table, verdicts
from tests.support.multicast_scenarios import relay
from tests.support.netns import Counters
from tests.support.nodes import PATIENCE_S, ROOT

BENCH = str(ROOT / "scripts/bench_multicast")
KEYS = {
    "strategy",
    "targets",
    "size_bytes",
    "rate_mbit",
    "seconds",
    "ideal_seconds",
    "predicted_seconds",
    "first_blob_seconds",
    "coverage_seconds",
    "received_bytes",
}
SIZE = 50_000_000
SETTING = Setting(400.0, rounds=3)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(multicast, "POLL_S", 0.001)
    monkeypatch.setattr(multicast, "SETTLE_S", 0.0)


class FakeCluster:
    """Answers as nodes do. A copy takes one second, and the next target waits for a tenth of it.

    `fails` is a state in which operations end instead of being done.
    """

    def __init__(self, nodes, *, fails=None, refuses=0):
        self.nodes, self.fails, self.refuses = nodes, fails, refuses
        self.there = 1
        self.asked = []
        self.operations = {}
        self.bytes = {f"n{i}": [0, 0] for i in range(nodes)}

    def post(self, path, body):
        assert path == "/admin/v1/models/bench/scale"
        self.asked.append(body)
        if self.refuses:
            return self.refuses, {"error": {"message": "no"}}
        facts = self.operation(body["instances"], body.get("strategy", ""))
        self.operations[facts["id"]] = iter([facts | {"state": "transferring"}, facts])
        self.there = body["instances"]
        return 202, facts | {"ended": False, "state": "claiming", "targets": []}

    def get(self, path):
        if path == "/cluster/instances":
            item = {"model": "bench", "state": "serving"}
            return 200, {"instances": [item] * self.there + [{"model": "other"}]}
        facts = next(self.operations[path.rpartition("/")[2]])
        facts["ended"] = facts["state"] != "transferring"
        return 200, facts

    def operation(self, instances, strategy):
        added = max(0, instances - self.there)
        targets = [self.target(i, strategy) for i in range(1, 1 + added)]
        for i in range(added):
            self.bytes[f"n{i}"][1] += SIZE
            self.bytes[f"n{i + 1}"][0] += SIZE
        predicted = {"complete": 1.1, "first_blob": 0.5, "coverage": 1.0}
        return {
            "id": f"op{len(self.asked)}",
            "state": self.fails or "done",
            "reason": "a disk was full" if self.fails else None,
            "strategy": strategy or "chain",
            "epoch": 1,
            "size_bytes": SIZE,
            "predicted_s": predicted if added else {"complete": None, "coverage": None},
            "targets": targets,
            "edges": [],
        }

    def target(self, place, strategy):
        ready_s = float(place) if strategy == "star" else 1.0 + 0.1 * (place - 1)
        arrived = [ready_s / 2, ready_s]
        return {
            "worker": f"n{place}/p0",
            "state": "ready",
            "ready_s": ready_s,
            "arrived_s": arrived if place % 2 else [None, *arrived[1:]],
        }

    def counters(self):
        return {name: Counters(*pair) for name, pair in self.bytes.items()}

    def check(self):
        pass


def test_a_row_has_its_figures_from_the_owners_clock_and_the_kernels_counters():
    cluster = FakeCluster(5)
    row = multicast.measure(cluster, SETTING, "chain", 1, 4)
    assert row.keys() >= KEYS
    assert (row["strategy"], row["targets"], row["rate_mbit"]) == ("chain", 4, 400.0)
    assert row["seconds"] == pytest.approx(1.3)
    assert row["ideal_seconds"] == pytest.approx(1.0)
    assert row["predicted_seconds"] == 1.1
    assert row["first_blob_seconds"] == pytest.approx(0.5)
    assert row["coverage_seconds"] == pytest.approx(1.0), "the first that has it counts"
    assert row["received_bytes"] == [SIZE] * 4
    assert row["sent_bytes"] == {f"n{i}": SIZE if i < 4 else 0 for i in range(5)}
    assert len(row["rounds"]) == SETTING.rounds
    asked = [body["instances"] for body in cluster.asked]
    assert asked == [5, 1] * SETTING.rounds, "each round begins with one instance"
    assert [body.get("strategy") for body in cluster.asked[:2]] == ["chain", None]
    json.dumps(row)


def test_failures_and_refusals_are_no_figures():
    with pytest.raises(OperationFailed, match="a disk was full"):
        multicast.measure(FakeCluster(3, fails="failed"), SETTING, "chain", 1, 2)
    with pytest.raises(OperationFailed, match="409"):
        multicast.measure(FakeCluster(3, refuses=409), SETTING, "chain", 1, 2)


def test_an_operation_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(multicast, "PATIENCE_S", 0.05)
    monkeypatch.setattr(multicast, "PATIENCE_FACTOR", 0.0)
    facts = {"id": "x", "ended": False, "state": "transferring", "size_bytes": 1, "targets": []}

    class Stuck(FakeCluster):
        def get(self, path):
            return 200, dict(facts)

    with pytest.raises(OperationFailed, match="still transferring"):
        multicast.await_end(Stuck(1), SETTING, dict(facts))


def test_a_node_that_ends_is_noticed():
    class Dying(FakeCluster):
        def check(self):
            raise ClusterFailed("n1 has ended")

    with pytest.raises(ClusterFailed, match="n1"):
        multicast.measure(Dying(3), SETTING, "chain", 1, 2)


def test_the_median_round_is_the_row():
    rounds = [made_round(seconds) for seconds in (3.0, 1.0, 2.0)]
    row = multicast.row(SETTING, "chain", rounds)
    assert row["seconds"] == 2.0
    assert row["received_bytes"] == [2]


def made_round(seconds):
    return multicast.Round(
        "chain", seconds, seconds, 1.0, 0.1, 0.9, 0.9, SIZE, ("n1",), (int(seconds),)
    )


def test_coverage_wants_every_blob_somewhere():
    targets = [{"arrived_s": [1.0, None, 3.0]}, {"arrived_s": [None, 2.0, 4.0]}]
    assert multicast.coverage_s(targets) == 3.0
    assert multicast.coverage_s(targets[:1]) == -1.0
    assert multicast.coverage_s([]) == -1.0


def made_row(strategy, targets, seconds, predicted=1.0, copies=1.0):
    return {
        "strategy": strategy,
        "targets": targets,
        "size_bytes": SIZE,
        "rate_mbit": 400.0,
        "seconds": seconds,
        "ideal_seconds": 1.0,
        "predicted_seconds": predicted,
        "first_blob_seconds": 0.1,
        "coverage_seconds": -1.0,
        "received_bytes": [round(copies * SIZE)] * targets,
        "sent_bytes": {"n0": SIZE},
    }


ROWS = [
    made_row("chain", 1, 1.05, 1.04),
    made_row("chain", 8, 1.20, 1.06, copies=1.2),
    made_row("star", 1, 1.05, 1.05),
    made_row("star", 8, 8.4, 8.3),
]


def test_verdicts_are_those_of_what_it_must_show():
    met = {one.name: one.met for one in verdicts(ROWS)}
    assert met["chain: T(1) / (bytes / rate)"]
    assert not met["chain: T(8) / T(1)"]
    assert met["star(8) / chain(8)"]
    assert met["chain: model received by each of 1"]
    assert not met["chain: model received by each of 8"]
    assert met["chain: model sent by each, 8 targets"]
    assert met["chain: prediction for 1 is off by"]
    assert not met["chain: prediction for 8 is off by"]
    assert met["star: prediction for 8 is off by"]
    assert verdicts([]) == []
    assert error(ROWS[1]) == pytest.approx(1.06 / 1.20 - 1)
    assert (received(ROWS[1]), sent(ROWS[1])) == (1.2, 1.0)
    assert str(Verdict("a figure", 2.0, 1.0)).endswith("2.000 ≤ 1 MISSED")
    assert str(Verdict("a figure", 2.0, 1.0, least=True)).endswith("2.000 ≥ 1 ok")


def test_the_table_has_ratios_and_leaves_out_what_is_not_known():
    head, _, *lines = table(ROWS).splitlines()
    assert len(lines) == len(ROWS)
    assert "T/T(1)" in head
    assert "8.000" in lines[3], "a star is flat in nothing"
    assert "-11.7 %" in lines[1]
    assert "-1.0" not in table([made_row("bare", 1, 1.0, predicted=-1.0)])


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [made_row("<a & b>", 3, 0.004)]])
def test_the_plot_is_an_image_with_a_point_for_each_row(rows):
    image = ET.fromstring(plot(rows))
    space = {"svg": "http://www.w3.org/2000/svg"}
    circles = image.findall("svg:circle", space)
    assert len(circles) == len(rows)
    for circle in circles:
        assert 0 < float(circle.get("cx")) < float(image.get("width"))
        assert 0 < float(circle.get("cy")) < float(image.get("height"))
    texts = [text.text for text in image.findall("svg:text", space)]
    assert {row["strategy"] for row in rows} <= set(texts)


def test_the_relay_is_in_the_middle_and_neither_owns_nor_answers():
    chain = ["n0", "n4", "n2", "n1", "n3"]
    pairs = reversed([*itertools.pairwise(chain)])  # in whatever order they are told
    edges = [{"source": f"{a}/p0", "target": f"{b}/p0"} for a, b in pairs]
    assert relay({"edges": edges, "owner": "n9"}, {}) == 2
    assert relay({"edges": edges, "owner": "boot2"}, {"boot2": "n2"}) == 1
    with pytest.raises(OperationFailed, match="no relay"):
        relay({"edges": edges[-1:], "owner": "n9"}, {})


@pytest.mark.parametrize(("size_mb", "blobs"), [(1, 8), (4, 6), (20, 3)])
def test_a_bench_model_can_be_served_and_its_blobs_are_equal(tmp_path, size_mb, blobs):
    folder = bench_model(size_mb, blobs, tmp_path)
    found = size_bytes(folder)
    assert len(found) == blobs
    assert sum(found) == pytest.approx(size_mb * 1e6, rel=0.01)
    assert min(found) / max(found) > 0.99
    checkpoint = open_checkpoint(folder)
    try:
        assert checkpoint.shape.n_layers == blobs - 2
        assert not checkpoint.shape.tied_head
        assert checkpoint.text().chat_template
    finally:
        checkpoint.close()


def test_bench_models_are_the_same_each_time_and_few_are_kept(tmp_path):
    def digest(folder):
        content = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
        return hashlib.sha256(content).hexdigest()

    first = digest(bench_model(1, 8, tmp_path / "a"))
    assert digest(bench_model(1, 8, tmp_path / "b")) == first
    made = bench_model(1, 8, tmp_path / "a")
    written = (made / "model.safetensors").stat().st_mtime_ns
    assert (bench_model(1, 8, tmp_path / "a") / "model.safetensors").stat().st_mtime_ns == written
    others = [bench_model(1, blobs, tmp_path / "a") for blobs in range(4, 4 + KEPT)]
    assert sorted((tmp_path / "a").iterdir()) == sorted(others)


def test_the_default_model_has_32_blobs_of_8_mb():
    made = sizes(270_000_000, 32)
    assert (made.layers, made.hidden) == (30, 512)
    with pytest.raises(ValueError, match="too small"):
        sizes(100_000, 32)
    with pytest.raises(ValueError, match="3"):
        sizes(270_000_000, 2)


def test_nodes_are_told_what_config_py_knows(tmp_path):
    from blitzgw.configfile.load import load

    network = NETWORK.format(name="fast", host="10.78.1.1", rate=1e9)
    (tmp_path / "admin.key").write_text("k" * 64)
    (tmp_path / "admin.key").chmod(0o600)
    path = bench_model(1, 8, tmp_path)
    terms = Terms()
    more = {"host_copies": 0, "settings": terms.settings}
    model = ONE_MODEL.format(name="bench", path=path, load="true", **more)
    text = CONFIG.format(
        nothing="",
        name="n0",
        cache=tmp_path / "cache",
        http_port=8000,
        key_file=tmp_path / "admin.key",
        address="10.77.0.1",
        cluster_port=7946,
        seeds='"10.77.0.1:7946"',
        rate=47.8e6,
        networks=network,
        copies=tmp_path / "copies",
        models=model,
        **terms.of_node,
    )
    (tmp_path / "n0.toml").write_text(text)
    config = load(tmp_path / "n0.toml", environment={"BLITZGW_CLUSTER_KEY": "k" * 64})
    assert config.transfer.networks[0].name == "fast"
    assert config.models[0].host_copies == 0


def bench(tmp_path, *options):
    done = subprocess.run(
        [sys.executable, BENCH, *options],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        env={"PATH": "/usr/sbin:/usr/bin:/bin", "BLITZGW_CACHE": str(tmp_path)},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def permitted():
    """Say loudly where it cannot be tried."""
    try:
        netns.check_permitted()
    except netns.NotPermitted as error:
        pytest.skip(f"NO TESTBED HERE, so it was not tried: {error}")


def test_bare_sockets_are_measured_as_transfers_are(permitted, tmp_path):
    options = ["--bare", "--size-mb", "4", "--blobs", "6", "--rounds", "1", "--targets", "1,2"]
    files = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")]
    code, out, err = bench(tmp_path, *options, *files)
    assert code == 0, err
    assert "bare" in out
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["compute"] == "paced"
    for row, targets in zip(told["rows"], (1, 2), strict=True):
        assert row.keys() >= KEYS
        assert row["targets"] == targets
        ideal_s = row["ideal_seconds"]
        bursts_s = 2 * targets * multicast.ideal_s(512 * 1024, 400.0)
        assert ideal_s - bursts_s < row["seconds"] < 20 * ideal_s
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_nodes_scale_a_model_over_shaped_links(permitted, tmp_path):
    options = ["--size-mb", "4", "--blobs", "6", "--rounds", "1", "--rate-mbit", "200"]
    cells = ["--strategies", "chain", "--targets", "2", "--json", str(tmp_path / "a.json")]
    code, out, err = bench(tmp_path, *options, *cells)
    assert code == 0, out + err
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row.keys() >= KEYS
    assert row["targets"] == 2
    assert 0.5 * row["ideal_seconds"] < row["seconds"] < PATIENCE_S
    assert 0 < row["first_blob_seconds"] < row["coverage_seconds"] <= row["seconds"]
    assert row["predicted_seconds"] > 0.5 * row["ideal_seconds"]
    for count in (*row["received_bytes"], *row["sent_bytes"].values()):
        assert count < 1.5 * row["size_bytes"], "once, and what nodes say to one another"
    assert min(row["received_bytes"]) > row["size_bytes"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--copies", "--bare"], "one question"),
        (["--fast-link"], "two-sources"),
        (["--targets", "1,x"], "no list"),
    ],
)
def test_mistakes_are_named(permitted, tmp_path, options, word):
    code, _, err = bench(tmp_path, *options)
    assert code == 2
    assert word in err


def test_a_relay_that_loses_its_peer_ends():
    words = [sys.executable, barerelay.__file__, "1000", "127.0.0.1", "127.0.0.2", "", "last"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "refused" in done.stderr
