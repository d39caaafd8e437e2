"""Endpoints that answer as a test says, in a thread of their own, and a player against them."""

import asyncio
import contextlib
import json
import threading

from blitzgw.sim.evaluation.arrivals import Arrival
from scripts.evaluation.client import Endpoint
from scripts.evaluation.player import Options, Player

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


@contextlib.contextmanager
def server(answer):
    """Yield the port at which `await answer(head, body, writer)` answers each request."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), {}

    async def handle(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split()[0])
            await answer(head.decode(), json.loads(await reader.readexactly(length)), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def serve():
        made = await asyncio.start_server(handle, "127.0.0.1", 0)
        found["port"], found["stop"] = made.sockets[0].getsockname()[1], asyncio.Event()
        ready.set()
        await found["stop"].wait()
        made.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found["port"]
    finally:
        loop.call_soon_threadsafe(found["stop"].set)
        thread.join(10)
        loop.close()


def data(value):
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def framed(payload):
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def chunk(text="a", ids=None, finish=None, chat=False):
    choice = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if chat else {"text": text}
    return {"choices": [choice | ({} if ids is None else {"token_ids": ids})]}


def usage(prompt, completion, **further):
    counted = {"prompt_tokens": prompt, "completion_tokens": completion} | further
    return {"choices": [], "usage": counted}


WHOLE = data(chunk()) + data(chunk(finish="stop")) + data(b"[DONE]")


def answering(payload):
    """An endpoint that says the same to all, as bytes."""

    async def answer(_head, _body, writer):
        writer.write(payload)

    return answer


def play(answer, arrivals=None, **options):
    """Replay against an endpoint; return the replies by number."""
    replies = []
    with server(answer) as port:
        options = Options("m", **options)
        arrivals = arrivals or [Arrival(0.0, 5, 3)]
        player = Player([Endpoint(f"http://127.0.0.1:{port}")], arrivals, options, replies.append)
        assert player.run() == player.answers
    assert [one.answer for one in sorted(replies, key=lambda one: one.number)] == player.answers
    return sorted(replies, key=lambda one: one.number)
