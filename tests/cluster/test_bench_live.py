"""The bench of live scaling: its pace, its rows, its verdicts, its traces and its picture."""

import json
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET

import pytest

from tests.support import live, live_trace, netns
from tests.support.benchmodel import bench_model
from tests.support.gateways import CONFIG, ONE_MODEL
from tests.support.live import Round, percentile, usable_s
from tests.support.live_client import Answer, Volley, completion, prompts
from tests.support.live_picture import plot
from tests.support.live_report import ratio, table, verdicts
from tests.support.live_scenarios import in_window, per_second, worst
from tests.support.live_setting import DILATION, LAYERS, MAX_RATE_MBIT, Pace
from tests.support.multicast import OperationFailed
from tests.support.nodes import PATIENCE_S, ROOT

BENCH = str(ROOT / "scripts/bench_live")
KEYS = {
    "policy",
    "targets",
    "load_over_compute",
    "mean_s",
    "p95_s",
    "load_s",
    "first_layer_s",
    "first_helped_s",
    "tokens_ok",
}
PACE = Pace(8.0, 7_940_000, 270_000_000)


def test_the_pace_keeps_the_ratio_of_loading_to_computing():
    assert PACE.prompt_s == pytest.approx(2000 / 15_000)
    payload = PACE.rate_mbit * 1e6 / 8 * netns.payload_share(1500)
    on_the_wall = PACE.layer_bytes / payload
    assert on_the_wall / DILATION == pytest.approx(8 * PACE.layer_s)
    assert PACE.load_s == pytest.approx(8 * PACE.prompt_s * 34 / 32, rel=0.01)


def test_time_passes_more_slowly_where_links_would_be_too_fast():
    control = Pace(1.0, PACE.layer_bytes, PACE.model_bytes)
    assert control.rate_mbit == pytest.approx(MAX_RATE_MBIT)
    assert control.slowed > DILATION
    assert Pace(1.0, PACE.layer_bytes, PACE.model_bytes, dilation=40).slowed == 40


def test_nodes_are_told_what_config_py_knows_of_paces(tmp_path):
    from blitzgw.configfile.load import load

    (tmp_path / "admin.key").write_text("k" * 64)
    (tmp_path / "admin.key").chmod(0o600)
    terms = PACE.terms()
    path = bench_model(1, 8, tmp_path)
    values = {"host_copies": 0, "settings": terms.settings}
    model = ONE_MODEL.format(name="bench", path=path, load="true", **values)
    text = CONFIG.format(
        nothing="",
        name="s0",
        cache=tmp_path / "cache",
        http_port=8000,
        key_file=tmp_path / "admin.key",
        address="10.77.0.1",
        cluster_port=7946,
        seeds='"10.77.0.2:7946"',
        rate=47.8e6,
        networks="",
        copies=tmp_path / "copies",
        models=model,
        **terms.of_node,
    )
    (tmp_path / "s0.toml").write_text(text)
    config = load(tmp_path / "s0.toml", environment={"BLITZGW_CLUSTER_KEY": "k" * 64})
    assert config.node.dilation == DILATION
    assert config.models[0].max_batched_tokens == 2048
    cost = config.devices[0].cost
    layer_us = cost.fixed_us + cost.token_us * 2000
    assert layer_us * 1e-6 == pytest.approx(PACE.layer_s, rel=1e-4)
    assert (cost.kv_bytes, cost.hidden_bytes) == (69, 138)


def test_prompts_are_distinct_and_the_same_each_time():
    made = prompts(24, 50, 256)
    assert len({tuple(one) for one in made}) == 24
    assert made == prompts(24, 50, 256)
    assert made != prompts(24, 50, 256, seed=2)
    assert all(3 <= token < 256 for one in made for token in one)


def answers(count, *, split=()):
    return [
        Answer(f"r{i}", 100.0, 104.0 + 4 * i, 200, "", [i], "1-2" if i in split else "")
        for i in range(count)
    ]


FACTS = {
    "policy": "zigzag",
    "targets": [
        {"state": "ready", "ready_s": 5.0, "arrived_s": [2.0, 1.0, 3.0, 4.0, 4.5]},
        {"state": "failed", "ready_s": None, "arrived_s": []},
    ],
}


def test_a_round_has_undilated_seconds_from_the_send():
    one = live.read("zigzag", answers(3, split={1, 2}), FACTS, PACE, 100.0, 101.0)
    assert one.completions_s == (1.0, 2.0, 3.0)
    assert (one.mean_s, one.p95_s, one.helped) == (2.0, 3.0, 2)
    assert one.first_helped_s == 2.0
    assert one.load_s == 5.25
    assert one.first_layer_s == 2.25, "the first layer was there before the embedding"
    assert one.half_s == 3.25
    assert one.planned == "zigzag"
    alone = live.read(live.ALONE, answers(2), {}, PACE, 100.0, 100.0)
    assert (alone.load_s, alone.first_helped_s) == (-1.0, -1.0)


def test_a_failed_request_voids_its_round():
    bad = [*answers(2), Answer("r2", 100.0, 101.0, 503, "overloaded")]
    with pytest.raises(OperationFailed, match="1 of 3 requests failed; r2: 503 overloaded"):
        live.read("zigzag", bad, FACTS, PACE, 100.0, 100.0)
    with pytest.raises(OperationFailed, match="no target is ready"):
        live.read("stop", answers(1), {"targets": []}, PACE, 100.0, 100.0)


def test_a_layer_is_usable_with_all_before_it():
    assert usable_s([1.0, 3.0, 2.0, 9.0], 10.0) == (13.0, 13.0)
    assert usable_s([None, 3.0, 2.0, 9.0], 0.0) == ()
    assert usable_s([], 0.0) == ()


def made_round(policy, *seconds, tokens=((1,), (2,))):
    return Round(policy, seconds, tokens, 0.0, 1.0, 0.1, 0.5, 0.6, ("", "x"))


def made_rows(stop, zigzag, at=8.0, tokens=((1,), (2,))):
    pace = Pace(at, PACE.layer_bytes, PACE.model_bytes)
    rounds = [made_round("stop", *stop)], [made_round("zigzag", *zigzag, tokens=tokens)]
    return [live.row(each, ((1,), (2,)), pace, 1) for each in rounds]


def test_rows_have_what_is_promised_and_verdicts_compare_with_stop():
    rows = made_rows((1.0, 3.0), (1.0, 2.0))
    assert all(row.keys() >= KEYS for row in rows)
    json.dumps(rows)
    assert ratio(rows[1], rows, "mean_s") == 0.75
    met = {one.name: one.met for one in verdicts(rows)}
    assert met["zigzag / stop, mean, load/compute 8"]
    assert met["zigzag / stop, p95, load/compute 8"]
    assert all(met.values())
    missed = {one.name: one.met for one in verdicts(made_rows((1.0, 3.0), (1.2, 2.9)))}
    assert not missed["zigzag / stop, mean, load/compute 8"]
    assert len(verdicts(rows, paced=False)) == 1
    assert verdicts([]) == []
    head, _, first, second = table(rows).splitlines()
    assert "/stop" in head
    assert "1.000" in first
    assert "0.750" in second


def test_the_control_must_show_no_gain_and_other_tokens_are_no_success():
    (control, wrong) = verdicts(made_rows((1.0, 3.0), (1.0, 2.0), at=1.0))
    assert control.least
    assert not control.met
    assert wrong.met
    rows = made_rows((1.0, 3.0), (1.0, 2.0), tokens=((1,), (3,)))
    assert [row["tokens_ok"] for row in rows] == [True, False]
    assert not verdicts(rows)[-1].met
    assert "WRONG" in table(rows)


def test_a_row_is_the_median_of_its_rounds():
    rounds = [made_round("stop", second, second) for second in (3.0, 1.0, 2.0)]
    row = live.row(rounds, ((1,), (2,)), PACE, 1)
    assert (row["mean_s"], row["spread_s"]) == (2.0, 2.0)
    assert percentile(range(1, 25), 0.95) == 23


def trace_lines():
    def line(at, what, **facts):
        return json.dumps({"at": at, "what": what, **facts})

    def step(number, instance, at, span, *requests):
        yield line(at - 0.5, "posted", step=number, instance=instance, span=span, requests=requests)
        yield line(at, "done", step=number, instance=instance, duration=0.25)

    yield line(9.0, "tokens", request="cmpl-old-aa-0", tokens=1)
    yield from step(1, "m@s0/p0", 11.0, [0, 4], ["cmpl-r000-ab-0", 10])
    yield line(10.25, "layers", instance="m@n1/p0", layers=0)
    yield line(10.5, "layers", instance="m@n1/p0", layers=1)
    yield from step(1, "m@n1/p0", 11.0, [0, 1], ["cmpl-r001-cd-0", 6], ["cmpl-r002-ef-0", 2])
    yield line(11.0, "said", message="Handoff", request="cmpl-r001-cd-0", layer=1)
    yield line(11.0, "said", message="Lend", request="cmpl-r001-cd-0", layer=None)
    yield line(11.5, "tokens", request="cmpl-r000-ab-0", tokens=1)
    yield line(11.75, "ready", instance="m@n1/p0")
    yield from step(2, "m@s0/p0", 12.0, [1, 4], ["cmpl-r001-cd-0", 6])
    yield '{"at": 12.5, "wh'


def test_a_trace_tells_who_computed_what_when():
    trace = live_trace.read(trace_lines(), 10.0)
    assert trace.instances == ["m@s0/p0", "m@n1/p0"], "the one that was complete is first"
    first = trace.works[0]
    assert (first.start_s, first.stop_s, first.span) == (0.75, 1.0, (0, 4))
    assert trace.handoffs == [(1.0, "r001", 1)]
    assert trace.tokens == [(1.5, "r000")], "what was before the send is another round's"
    assert trace.ready == {"m@n1/p0": 1.75}
    assert live_trace.first_steps_s(trace) == {"m@n1/p0": 0.25}
    assert live_trace.idle_share(trace, "m@s0/p0", 0.5, 1.5) == 0.75
    assert live_trace.layer_tokens_per_s(trace, 0.5, 1.5) == 4 * 10 + 8
    assert live_trace.layer_tokens_per_s(trace, 0.875, 1.0) == (20 + 4) / 0.125


def test_the_picture_has_a_box_for_each_request_of_a_step():
    image = ET.fromstring(plot(live_trace.read(trace_lines(), 10.0), LAYERS, "a < b"))
    space = {"svg": "http://www.w3.org/2000/svg"}
    titles = [title.text for title in image.findall("svg:rect/svg:title", space)]
    assert sum("layers" in title for title in titles) == 4
    for one in image.findall("svg:rect", space)[1:]:
        assert 0 <= float(one.get("x")) <= float(image.get("width"))
        assert 0 <= float(one.get("y")) <= float(image.get("height"))
    texts = [text.text for text in image.findall("svg:text", space)]
    assert {"a < b", "m@s0/p0", "m@n1/p0 (loading)", "complete"} <= set(texts)
    ET.fromstring(plot(live_trace.Trace(), LAYERS, "nothing"))


def test_rates_and_times_per_token():
    assert per_second([3.0, 1.0, 2.0]) == 1.0
    assert per_second([1.0]) == 0.0
    one = Round("zigzag", (1.0, 2.0, 2.5, 3.0, 9.0), (), 0.0, load_s=4.0, half_s=1.5)
    assert in_window(one) == 2.0
    streams = [Answer("a", 0.0, token_times=[0.0, 1.0, 2.0, 3.0]), Answer("b", 0.0)]
    assert worst(streams, 0.5, 3.5) == 1.0
    with pytest.raises(OperationFailed, match="no stream"):
        worst(streams[1:], 0.0, 9.0)


class Server:
    """Answers each of some connections with given bytes, after the request."""

    def __init__(self, *replies):
        self.shots, self.threads = [], []
        for number, reply in enumerate(replies):
            ours, theirs = socket.socketpair()
            ours.settimeout(PATIENCE_S)
            self.shots.append((f"r{number}", ours, b"POST / HTTP/1.1\r\n\r\n"))
            self.threads.append(threading.Thread(target=self.answer, args=(theirs, reply)))
        for thread in self.threads:
            thread.start()

    @staticmethod
    def answer(sock, reply):
        with sock:
            sock.recv(4096)
            sock.sendall(reply)

    def join(self):
        for thread in self.threads:
            thread.join(PATIENCE_S)


def reply(status, body, *headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_answers_are_read_whatever_they_are():
    choice = {"choices": [{"token_ids": [7]}], "usage": {}}
    split = {"choices": [{"token_ids": [8]}], "usage": {"blitzgw_split": [{"instance": "a"}]}}
    events = [{"choices": [{"token_ids": [5]}]}, {"choices": [{"token_ids": [6]}]}]
    stream = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in events)
    server = Server(
        reply(200, json.dumps(choice).encode(), "X-Blitzgw-Split: a[0,2) b[2,4)"),
        reply(200, json.dumps(split).encode()),
        reply(200, stream + b"data: [DONE]\n\n", "Content-Type: text/event-stream"),
        reply(503, b"later"),
        b"",
        reply(200, b"no json"),
    )
    volley = Volley(server.shots)
    began = volley.send()
    found = volley.answers()
    server.join()
    assert [one.good for one in found] == [True, True, True, False, False, False]
    assert [one.tokens for one in found[:3]] == [[7], [8], [5, 6]]
    assert found[0].split == "a[0,2) b[2,4)"
    assert "instance" in found[1].split
    assert not found[2].split
    assert len(found[2].token_times) == 2
    assert (found[3].status, found[3].error) == (503, "later")
    assert all(one.error for one in found[3:])
    assert all(one.ended_s >= one.sent_s >= began for one in found)


def test_a_volley_that_is_left_ends_its_threads():
    ours, theirs = socket.socketpair()
    with theirs:
        volley = Volley([("r0", ours, b"x")])
        volley.send()
        volley.close()
        assert not volley.pending[0].result(timeout=PATIENCE_S).good


def test_a_completion_asks_for_its_tokens():
    body = completion((4, 5), 9, stream=True)
    assert (body["prompt"], body["max_tokens"], body["return_token_ids"]) == ([4, 5], 9, True)
    assert body["stream"]


def bench(tmp_path, *options):
    done = subprocess.run(
        [sys.executable, BENCH, *options],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        env={"PATH": "/usr/sbin:/usr/bin:/bin", "BLITZGW_CACHE": str(tmp_path)},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--policies", "zigzag,fast"], "'fast' is none of"),
        (["--policies", ","], "at least one"),
        (["--burst", "0"], "0 is not in the range"),
        (["--standing-queue", "--tpot"], "one question at a time"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(tmp_path, options, says):
    code, _, told = bench(tmp_path, *options)
    assert code == 2
    assert says in told


def test_a_burst_is_measured_over_shaped_links(tmp_path):
    try:
        netns.check_permitted()
    except netns.NotPermitted as error:
        pytest.skip(f"NO TESTBED HERE, so it was not tried: {error}")
    files = ["--json", str(tmp_path / "a.json")]
    options = ["--policies", "zigzag", "--burst", "3", "--size-mb", "8", "--rounds", "1", *files]
    options += ["--load-over-compute", "2"]
    code, out, err = bench(tmp_path, *options)
    told = json.loads((tmp_path / "a.json").read_text())
    late = [one for one in told["failures"] if one.startswith("void")]
    assert told["failures"] == late, "nothing but a busy machine may void it"
    assert code == bool(late), out + err
    (row,) = told["rows"]
    assert row.keys() >= KEYS
    assert row["tokens_ok"]
    assert 0 < row["first_layer_s"] < row["load_s"]
    assert row["mean_s"] <= row["p95_s"] < PATIENCE_S
    assert told["compute"] == "paced"
