"""The open-loop player against endpoints that answer as they are told to."""

import asyncio
import os
import signal
import socket
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer
from scripts.evaluation import player
from scripts.evaluation.client import BadAnswer, Call, Endpoint
from scripts.evaluation.player import Options, Player
from scripts.evaluation.prompts import prompt_ids
from scripts.evaluation.reply import Reply
from scripts.evaluation.report import summary, table
from tests.cluster.replay_kit import (
    CHUNKED,
    HEAD,
    LAST,
    WHOLE,
    answering,
    chunk,
    data,
    framed,
    play,
    server,
    usage,
)

BUSY = b'{"error": {"message": "no room", "type": "x", "param": null, "code": 429}}'


def refusal(status, body=BUSY):
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


CASES = {
    "chunks": (HEAD + CHUNKED + framed(WHOLE) + LAST, "ok", "", 2),
    "until the end": (HEAD + b"\r\n" + WHOLE, "ok", "", 2),
    "length": (HEAD + b"Content-Length: %d\r\n\r\n" % len(WHOLE) + WHOLE, "ok", "", 2),
    "early": (b"HTTP/1.1 103 Early\r\nx: y\r\n\r\n" + HEAD + CHUNKED + framed(WHOLE), "ok", "", 2),
    "bytes": (HEAD + CHUNKED + b"".join(framed(bytes([b])) for b in WHOLE), "ok", "", 2),
    "no [DONE]": (HEAD + CHUNKED + framed(WHOLE[:-14]) + LAST, "ok", "", 2),
    "comments": (HEAD + b"\r\n: wait\n\n" + WHOLE.replace(b"\n", b"\r\n"), "ok", "", 2),
    "ids": (HEAD + CHUNKED + framed(data(chunk(ids=[5, 6])) + WHOLE), "ok", "", 4),
    "usage": (HEAD + CHUNKED + framed(WHOLE[:-14] + data(usage(5, 9))) + LAST, "ok", "", 9),
    "cut": (HEAD + CHUNKED + framed(data(chunk())), "failed", "the connection has ended", 1),
    "cut early": (HEAD + CHUNKED + framed(WHOLE)[:9], "failed", "the connection has ended", 0),
    "cut short": (HEAD + b"Content-Length: 999\r\n\r\n" + WHOLE[:-14], "failed", "has ended", 2),
    "no finish": (HEAD + CHUNKED + framed(data(chunk())) + LAST, "failed", "without a finish", 1),
    "cut at the end": (HEAD + b"\r\n" + data(chunk()), "failed", "without a finish", 1),
    "error": (HEAD + b"\r\n" + data({"error": {"message": "lost"}}) + WHOLE, "failed", "lost", 2),
    "odd error": (HEAD + b"\r\n" + data({"error": ""}) + WHOLE, "failed", "an error", 2),
    "list": (HEAD + CHUNKED + framed(data(b"[1]")), "failed", "not understood", 0),
    "no JSON": (HEAD + CHUNKED + framed(data(b"{")), "failed", "not understood", 0),
    "no size": (HEAD + CHUNKED + b"zz\r\n", "failed", "not understood", 0),
    "negative": (HEAD + CHUNKED + b"-1\r\n", "failed", "a size of -1", 0),
    "no length": (HEAD + b"Content-Length: -1\r\n\r\n" + WHOLE, "failed", "a size of -1", 0),
    "contended": (refusal(429), "refused", "429: no room", 0),
    "full": (refusal(503), "refused", "503: no room", 0),
    "proxy": (refusal(503, b"<html>"), "refused", "503: <html>", 0),
    "crash": (refusal(500), "failed", "500: no room", 0),
    "unknown": (refusal(404, b"{}"), "failed", "404: {}", 0),
    "no stream": (refusal(200), "failed", "no stream of events", 0),
    "no HTTP": (b"SSH-2.0 9\r\n\r\n", "failed", "no HTTP/1", 0),
    "no status": (b"HTTP/1.1\r\n\r\n", "failed", "not understood", 0),
    "nothing": (b"", "failed", "the connection has ended", 0),
    "long head": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, "failed", "without end", 0),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Here nothing takes long to connect to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(player, "CONNECT_S", 0.2)
        yield


@pytest.fixture(scope="module")
def replies():
    """One run: what is answered goes by the prompt's length."""
    payloads = [payload for payload, *_ in CASES.values()]

    async def answer(_head, body, writer):
        writer.write(payloads[len(body["prompt"]) - 1])

    found = play(answer, [Arrival(0.0, 1 + n, 3) for n in range(len(CASES))])
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_outcomes_are_told_apart(case, replies):
    _, outcome, error, tokens = CASES[case]
    answer = replies[case].answer
    assert (answer.outcome, answer.tokens) == (outcome, tokens)
    assert error in answer.error
    assert bool(answer.error) == (outcome != "ok")
    assert len(answer.gaps_s) == (1 if case == "usage" else max(0, tokens - 1))
    assert (answer.first_s >= 0) == (tokens > 0)
    assert answer.last_s >= answer.first_s


def test_times_count_from_the_intended_send_undilated():
    async def answer(_head, _body, writer):
        writer.write(HEAD + CHUNKED)
        for n in range(5):
            await asyncio.sleep(0.04)
            writer.write(framed(data(chunk(ids=[n] * 2, finish="length" if n == 4 else None))))
        writer.write(framed(data(usage(5, 10, blitzgw_split=SPLIT)) + data(b"[DONE]")))

    arrivals = [Arrival(0.05 * n, 5, 3) for n in range(6)]
    for reply in play(answer, arrivals, dilation=2.0):
        one = reply.answer
        assert one.outcome == "ok"
        assert one.at_s == arrivals[reply.number].at_s
        assert 0.02 <= one.first_s < 0.2
        assert one.last_s - one.first_s >= 4 * 0.02 - 1e-3
        assert sum(one.gaps_s) == pytest.approx(one.last_s - one.first_s)
        assert [gap == 0 for gap in one.gaps_s] == [True, False] * 4 + [True]
        assert (one.tokens, one.split) == (10, "m@a:0-3,m@b:3-9")
        assert reply.token_ids == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert (reply.finish, reply.prompt_counted, reply.status) == ("length", 5, 200)
        assert 0 <= one.lag_s < one.first_s


@given(st.data(), st.sampled_from([b"chunks", b"length", b"end"]))
@settings(max_examples=40, deadline=None)
def test_an_answer_may_come_in_any_pieces(data, framing):
    body = b"".join(b"data: {%d}\n\n" % n for n in range(4)) + b": no event\r\n\r\ndata:5\r\n\r\n"
    if framing == b"chunks":
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
        parts = [body[a:b] for a, b in pairwise([0, *cuts, len(body)]) if a < b]
        whole = HEAD + CHUNKED + b"".join(map(framed, parts)) + LAST
    else:
        length = b"Content-Length: %d\r\n" % len(body) if framing == b"length" else b""
        whole = HEAD + length + b"\r\n" + body
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=9)))

    async def read():
        heard = []
        call = Call(lambda event, _: heard.append(event))
        for a, b in pairwise([0, *cuts, len(whole)]):
            call.data_received(whole[a:b])
        assert call.over.done() == (framing != b"end")
        call.connection_lost(None)
        await call.over
        return heard

    assert asyncio.run(read()) == [b"{0}", b"{1}", b"{2}", b"{3}", b"5"]


SPLIT = [{"instance": "m@a", "layers": [0, 3]}, {"instance": "m@b", "layers": [3, 9]}]


def test_requests_are_open_loop_and_the_players_own_lag_is_told():
    def slow(reply):
        time.sleep(0.2 if reply.number == 0 else 0)  # what holds up the event loop

    arrivals = [Arrival(at_s, 5, 3) for at_s in (0.0, 0.05, 0.5)]
    with server(answering(HEAD + b"\r\n" + WHOLE)) as port:
        playing = Player([Endpoint(f"http://127.0.0.1:{port}")], arrivals, Options("m"), slow)
        first, second, third = playing.run()
    assert second.lag_s > 0.1
    assert second.first_s > second.lag_s
    assert first.lag_s < second.lag_s > third.lag_s
    found = summary([Reply(0, a, "", 0, b) for a, b in zip(arrivals, playing.answers, strict=True)],
                    3, 1.0)  # fmt: skip
    assert found["void"]
    assert "VOID" in table(found)


def test_nobody_waits_for_who_does_not_answer():
    async def answer(_head, body, writer):
        if len(body["prompt"]) == 1:
            writer.write(HEAD + CHUNKED + framed(data(chunk())))
            await asyncio.sleep(5)
        writer.write(HEAD + b"\r\n" + WHOLE)

    begun = time.monotonic()
    late, quick = play(answer, [Arrival(0, 1, 1), Arrival(0.1, 2, 1)], patience_s=0.2, dilation=2.0)
    assert time.monotonic() - begun < 4
    assert (late.answer.outcome, late.answer.tokens) == ("timeout", 1)
    assert "0.2 s" in late.answer.error
    assert quick.answer.ok


def test_a_request_says_what_was_asked_and_nothing_of_its_answers_length():
    asked = []

    async def answer(head, body, writer):
        asked.append((head, body))
        writer.write(HEAD + b"\r\n" + WHOLE)

    play(answer, [Arrival(0, 5, 3), Arrival(0, 4, 9)], max_tokens=77, api_key="k", name="x", seed=3)
    (head, body), (_, other) = sorted(asked, key=lambda one: -len(one[1]["prompt"]))
    assert head.startswith("POST /v1/completions HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer k\r\n" in head
    assert "\r\nX-Request-Id: x3-0\r\n" in head
    prompts = body.pop("prompt"), other.pop("prompt")
    assert prompts == (prompt_ids(3, 0, Arrival(0, 5, 3)), prompt_ids(3, 1, Arrival(0, 4, 9)))
    assert body == other
    assert (body["max_tokens"], body["stream"], body["temperature"]) == (77, True, 0)
    play(answer, seed_ends=True, token_ids=True)
    assert asked[-1][1]["seed"] == 5 + 3
    assert asked[-1][1]["return_token_ids"] is True
    assert "Authorization" not in asked[-1][0]


@pytest.mark.parametrize(
    ("count", "overhead"),
    [(lambda text: 3 + text.count(" "), 3), (lambda text: 1 + len(text), 1)],
    ids=["words", "letters"],
)
@pytest.mark.parametrize("prompts", ["text", "chat"])
def test_texts_have_the_exact_count_of_tokens(prompts, count, overhead):
    chat = prompts == "chat"

    async def answer(head, body, writer):
        assert head.startswith("POST /v1/chat/completions " if chat else "POST /v1/completions ")
        text = body["messages"][0]["content"] if chat else body["prompt"]
        said = [chunk(chat=chat), chunk(finish="stop", chat=chat), usage(count(text), 2)]
        writer.write(HEAD + b"\r\n" + b"".join(map(data, said)) + data(b"[DONE]"))

    arrivals = [Arrival(0, 50, 3), Arrival(0, 1000, 3), Arrival(0, overhead, 3)]
    found = play(answer, arrivals, prompts=prompts)
    assert [one.answer.outcome for one in found] == ["ok"] * 3
    assert [one.prompt_counted for one in found] == [50, 1000, overhead + 1]
    assert summary(found, 3, 1.0)["prompts_off"] == 1


def test_texts_need_units_of_one_token():
    with pytest.raises(ValueError, match="neither words nor letters"):
        play(answering(HEAD + b"\r\n" + WHOLE[:-14] + data(usage(7, 2))), prompts="text")
    with pytest.raises(BadAnswer, match="counts no tokens"):
        play(answering(HEAD + b"\r\n" + WHOLE), prompts="text")
    with pytest.raises(BadAnswer, match="404"):
        play(answering(refusal(404)), prompts="text")


def test_endpoints_are_asked_in_turns_over_the_sockets_that_are_given():
    made = []

    def refuse():
        raise ConnectionRefusedError("nobody")

    with server(answering(HEAD + b"\r\n" + WHOLE)) as port:

        def connect():
            made.append(socket.create_connection(("127.0.0.1", port)))
            return made[-1]

        endpoints = [
            Endpoint(f"http://localhost:{port}/v1/"),
            Endpoint("http://10.255.255.1:1", connect),
            Endpoint("http://10.255.255.1:1", refuse),
        ]
        playing = Player(endpoints, [Arrival(0, 5, 3)] * 6, Options("m"))
        outcomes = [one.outcome for one in playing.run()]
    assert outcomes == ["ok", "ok", "failed"] * 2
    assert playing.answers[2].error == "no connection: nobody"
    assert len(made) == 2
    assert playing.tally.outcomes == {"ok": 4, "failed": 2}
    assert (playing.tally.offered, playing.tally.sent, playing.tally.done) == (6, 4, 6)


@pytest.mark.parametrize(
    "url", ["", "10.0.0.1:80", "ftp://x", "http://", "http://x:y", "http://a:b@c"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match=r"address|[Pp]ort"):
        Endpoint(url)


def test_who_watches_may_end_a_run():
    seen = []

    def watch(now_s):
        seen.append(now_s)
        if now_s > 0.3:
            raise LookupError("a node has ended")

    with server(answering(HEAD + b"\r\n" + WHOLE)) as port:
        arrivals = [Arrival(0, 5, 3), Arrival(60, 5, 3)]
        playing = Player([Endpoint(f"http://127.0.0.1:{port}")], arrivals, Options("m"))
        with pytest.raises(LookupError, match="a node has ended"):
            playing.run(watch, 0.05)
    assert seen[0] < 0 < seen[-1] < 10
    assert [one.outcome for one in playing.answers] == ["ok"]


def test_an_interrupt_leaves_what_has_been_answered_and_tells_what_was_under_way():
    async def answer(_head, body, writer):
        if len(body["prompt"]) == 6:
            await asyncio.sleep(5)
        writer.write(HEAD + b"\r\n" + WHOLE)

    with server(answer) as port:
        arrivals = [Arrival(0, 5, 3), Arrival(0, 6, 3), Arrival(60, 5, 3)]
        playing = Player([Endpoint(f"http://127.0.0.1:{port}")], arrivals, Options("m"))

        def leave(_now_s: float) -> None:
            if playing.answers:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            playing.run(leave, 0.05)
    assert [one.outcome for one in playing.answers] == ["ok"]
    assert playing.tally.under_way == 1
    text = table(summary([], 3, 1.0, None, playing.tally.under_way))
    assert "1 under way, 2 not sent" in text


def test_answers_without_a_token_or_an_end_are_told_as_left_out():
    there = Answer(0.0, 5, 3, "ok", first_s=0.1, last_s=0.2, tokens=3)
    lost, cut = Answer(0.0, 5, 3, "refused"), replace(there, outcome="failed")
    some = [Reply(0, Arrival(0.0, 5, 3), "", 0, one) for one in (there, lost, cut)]
    text = table(summary(some, 3, 1.0))
    assert "(1 without a token left out)" in text
    assert "(2 not whole left out)" in text
    assert "given up" not in text


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no such thing")
def test_a_run_leaves_the_thread_as_it_was():
    before, during = os.sched_getscheduler(0), []
    with server(answering(HEAD + b"\r\n" + WHOLE)) as port:
        endpoint = Endpoint(f"http://127.0.0.1:{port}")
        playing = Player([endpoint], [Arrival(0, 5, 3)], Options("m"),
                         lambda _: during.append(os.sched_getscheduler(0)))  # fmt: skip
        playing.run()
    assert os.sched_getscheduler(0) == before
    assert during[0] in (before, os.SCHED_RR)
