"""`blitzgw probe`, against a node's real HTTP side."""

import json

import pytest

from blitzgw.cli.main import main
from blitzgw.core.probe import ProbeFacts, ProbeWish
from blitzgw.core.transfer import MAX_PROBE_BYTES, TrafficClass
from blitzgw.errors import InvalidRequest
from tests.support.probing import FakeProbing
from tests.support.scalenode import ADMIN_KEY, scale_node_beside
from tests.support.scaling import FakeScaling

MIB = 1 << 20


@pytest.fixture
def probing():
    return FakeProbing()


@pytest.fixture(autouse=True)
def node(probing, monkeypatch, tmp_path):
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path))
    with scale_node_beside(FakeScaling(), probing=probing) as url:
        monkeypatch.setenv("BLITZGW_URL", url)
        monkeypatch.setenv("BLITZGW_ADMIN_KEY", ADMIN_KEY)
        yield


def said(capsys, *more, code=0):
    assert main(["probe", "a/p0", "b/p0", *more]) == code
    return capsys.readouterr()


def test_it_tells_the_rate_and_what_that_cost(capsys):
    out, err = said(capsys)
    assert "a/p0 → b/p0 over fast: 47.68 MiB/s, 400 Mbit/s (95.37 MiB in 2 s)" in out
    assert "stood back for requests: 0.5 s; kept them waiting: 0 s" in out
    assert not err


def test_options_are_passed_on(capsys, probing):
    said(capsys)
    said(capsys, "--size", "1MiB", "--class", "kv", "--rate", "80Mbit", "--encrypt")
    said(capsys, "--seconds", "2.5", "--network", "fast")
    assert probing.asked == [
        ProbeWish("a/p0", "b/p0", 256 * MIB, 60.0),
        ProbeWish("a/p0", "b/p0", MIB, 60.0, TrafficClass.KV, None, 1e7, encrypt=True),
        ProbeWish("a/p0", "b/p0", MAX_PROBE_BYTES, 2.5, network="fast"),
    ]


def test_json_is_the_answer(capsys, probing):
    probing.answer = ProbeFacts("", 7, 0.0)
    found = json.loads(said(capsys, "--format", "json").out)
    assert (found["payload_bytes"], found["network"], found["bytes_per_s"]) == (7, None, None)
    assert "too short to tell" in said(capsys).out


@pytest.mark.parametrize(
    "wrong",
    [
        ("--size", "much"),
        ("--size", "0"),
        ("--rate", "fast"),
        ("--seconds", "0"),
        ("--seconds", "61"),
        ("--class", "gossip"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(capsys, probing, wrong):
    assert wrong[0] in said(capsys, *wrong, code=2).err
    assert not probing.asked


def test_an_unknown_worker_is_told_with_those_there_are(capsys, probing):
    probing.refusal = InvalidRequest("there is no worker b/p0; there are: a/p0, c/p0")
    assert "there are: a/p0, c/p0" in said(capsys, code=1).err
