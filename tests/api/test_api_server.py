"""Connections, limits, keys, routes: raw sockets against the real runner."""

import asyncio
import hashlib
import io
import json
import logging
import socket
import time

import pytest

from blitzgw.api.limits import Limits
from blitzgw.core.request import TokenEvent

TEXT = {"model": "m", "prompt": "Hello"}
STREAM = TEXT | {"stream": True, "max_tokens": 4000}


async def until(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def parse(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body)


def is_error(answer, status, code):
    got, headers, body = parse(answer)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert headers["x-blitzgw-error-code"] == code
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == status
    for secret in ("Traceback", "/opt", "/work", ".py", "aiohttp"):
        assert secret not in body["error"]["message"]
    return True


# -- routes ----------------------------------------------------------------------------------------


async def test_information_routes(world):
    for path in ("/health", "/ping", "/ready", "/version", "/load", "/v1/models", "/metrics"):
        status, headers, _ = await world.get(path)
        assert status == 200, path
        assert headers["x-blitzgw-node"] == "node-a"
    assert (await world.get("/version"))[2] == {"version": "0.1.0"}
    assert (await world.get("/load"))[2]["server_load"] == 5
    item = (await world.get("/v1/models"))[2]["data"][0]
    assert item == {
        "id": "m", "object": "model", "created": 1700000000, "owned_by": "blitzgw", "root": "m",
        "parent": None, "max_model_len": 4096,
        "blitzgw": {"state": "serving", "instances": 1, "layers_resident": 30,
                    "layers_total": 30, "wanted": None, "mode": "manual", "eta_s": None},
    }  # fmt: skip
    assert (await world.get("/v1/models/m"))[2] == item
    assert (await world.get("/v1/models/alias"))[2]["root"] == "m"
    assert (await world.get("/v1/models/no/such"))[0] == 404
    async with world.http.head(world.url("/health")) as response:
        assert response.status == 200
    async with world.http.post(world.url("/ping")) as response:
        assert response.status == 200


async def test_unknown_routes_and_methods(world):
    for path in ("/", "/v1", "/v1/chat/completions/", "/metrics/", "/v1/embeddings", "/..%2f"):
        is_error(await world.raw(f"GET {path} HTTP/1.0\r\n\r\n".encode()), 404, "not_found")
    answer = await world.raw(b"GET /v1/completions HTTP/1.0\r\n\r\n")
    assert is_error(answer, 405, "method_not_allowed")
    assert parse(answer)[1]["allow"] == "POST"
    assert is_error(await world.raw(b"DELETE /health HTTP/1.0\r\n\r\n"), 405, "method_not_allowed")


async def test_ready_tells_why_not(world):
    assert (await world.get("/ready"))[2]["models"]["m"]["layers_resident"] == 30
    world.status.accepting, world.status.reason = False, "starting"
    status, _, body = await world.get("/ready")
    assert (status, body["ready"], body["reason"]) == (503, False, "starting")
    world.status.accepting = True
    world.server.drain()
    status, headers, body = await world.get("/ready")
    assert (status, body["reason"]) == (503, "draining")
    assert headers["Connection"] == "close"
    assert (await world.get("/health"))[0] == 200


async def test_request_ids_are_echoed_or_made(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    for given, kept in (("abc-1", True), ("a" * 128, True), ("a" * 129, False), ("a b", False),
                        ('q"\\', True)):  # fmt: skip
        _, headers, body = await world.post(
            "/v1/completions", TEXT, headers={"x-request-id": given}
        )
        assert (headers["x-request-id"] == given) is kept
        assert body["id"] == "cmpl-" + headers["x-request-id"]
        assert world.generator.last[0].id.startswith(body["id"])
    async with world.http.post(
        world.url("/v1/completions"), json=STREAM, headers={"x-request-id": 'q"\\'}
    ) as response:
        first = (await response.read()).split(b"\n\n")[0]
    assert json.loads(first[6:])["id"] == 'cmpl-q"\\'


async def test_one_id_twice_reaches_two_generations(world):
    posts = [
        asyncio.ensure_future(
            world.http.post(world.url("/v1/completions"), json=TEXT, headers={"x-request-id": "x"})
        )
        for _ in range(2)
    ]
    await until(lambda: len(world.generator.requests) == 2)
    for post in posts:
        post.cancel()
    await until(lambda: len(world.generator.aborted) == 2)


async def test_an_internal_error_tells_nothing(world, caplog):
    def broken(request):
        raise ValueError("SECRET " + str(request.tokens))

    world.generator.refusal = broken
    for streamed in (False, True):
        status, headers, body = await world.post("/v1/completions", TEXT | {"stream": streamed})
        assert status == 500
        assert headers["x-blitzgw-error-code"] == "internal_error"
        assert body["error"]["message"] == "internal error"
    assert "request_failed" in caplog.text
    assert "SECRET" not in caplog.text
    assert world.server.active == 0


# -- limits ----------------------------------------------------------------------------------------


async def test_header_floods(world):
    many = b"".join(b"x-%d: 1\r\n" % i for i in range(101))
    answer = await world.raw(b"GET /health HTTP/1.1\r\n" + many + b"\r\n")
    assert is_error(answer, 431, "headers_too_large")
    answer = await world.raw(b"GET /health HTTP/1.1\r\nx: " + b"a" * 9000 + b"\r\n\r\n")
    assert is_error(answer, 431, "headers_too_large")
    total = b"".join(b"x-%d: %b\r\n" % (i, b"a" * 6000) for i in range(6))
    answer = await world.raw(b"GET /health HTTP/1.0\r\n" + total + b"\r\n")
    assert is_error(answer, 431, "headers_too_large")
    fine = b"".join(b"x-%d: 1\r\n" % i for i in range(98))
    answer = await world.raw(b"GET /health HTTP/1.0\r\n" + fine + b"\r\n")
    assert answer.startswith(b"HTTP/1.0 200")


async def test_long_urls(world):
    answer = await world.raw(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")
    assert is_error(answer, 414, "url_too_long")


async def test_what_is_not_http(world, caplog):
    caplog.set_level(logging.INFO)
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                 b"GET /health HTTP/1.1\r\nbad header\x00: 1\r\n\r\n",
                 b"POST /tokenize HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):  # fmt: skip
        assert is_error(await world.raw(junk), 400, "malformed_http")
    assert "Traceback" not in caplog.text


async def test_large_bodies_are_refused_before_they_are_read(world, tools):
    head = tools.post_bytes("/v1/completions", b"").replace(
        b"Content-Length: 0", b"Content-Length: 52428800"
    )
    assert is_error(await world.raw(head + b"x"), 413, "body_too_large")
    async with world.http.post(
        world.url("/v1/completions"),
        data=io.BytesIO(b"x" * (50 << 20)),
        headers={"Content-Type": "application/json"},
    ) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == 413


async def test_large_chunked_bodies_are_refused_while_they_are_read(make_world):
    world = await make_world(limits=Limits(max_body=100_000))

    async def body():
        for _ in range(100):
            yield b"x" * 10_000

    async with world.http.post(
        world.url("/v1/completions"), data=body(), headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 413
    assert (await world.get("/health"))[0] == 200


async def test_slow_bodies_time_out(make_world, tools):
    world = await make_world(limits=Limits(body_timeout_s=0.1, linger_s=0.1))
    request = tools.post_bytes("/v1/completions", b"x" * 50)[:-20]
    assert is_error(await world.raw(request), 408, "body_timeout")


async def test_a_broken_chunked_body(world):
    head = (b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
    answer = await world.raw(head + b"ZZ\r\n{}\r\n")
    assert b" 400 " in answer[:20]


async def test_encodings_and_types_of_bodies(world, tools):
    body = json.dumps(TEXT).encode()
    for extra in ("Content-Encoding: gzip\r\n", "Content-Encoding: br\r\n"):
        request = tools.post_bytes("/v1/completions", body, "1.0", extra)
        assert is_error(await world.raw(request), 415, "content_encoding")
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b""):
        request = tools.post_bytes("/v1/completions", body, "1.0").replace(
            b"application/json", kind
        )
        assert is_error(await world.raw(request), 415, "content_type")


async def test_expect_100_continue(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    body = json.dumps(TEXT).encode()
    request = tools.post_bytes("/v1/completions", body, headers="Expect: 100-continue\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(request[: -len(body)])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_the_connection_cap(make_world):
    world = await make_world(limits=Limits(max_connections=2))
    held = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(2)]
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    assert is_error(await reader.read(), 503, "too_many_connections")
    writer.close()
    for _, other in held:
        other.close()
    await asyncio.sleep(0.05)
    assert (await world.get("/health"))[0] == 200


async def test_too_many_requests_in_flight(make_world):
    world = await make_world(limits=Limits(max_active=1))
    first = asyncio.ensure_future(world.http.post(world.url("/v1/completions"), json=TEXT))
    await until(lambda: world.generator.requests)
    status, headers, _ = await world.post("/v1/completions", TEXT)
    assert (status, headers["Retry-After"]) == (429, "1")
    first.cancel()


# -- keys ------------------------------------------------------------------------------------------


async def test_keys_are_needed_everywhere_but_on_public_paths(make_world, tools, caplog):
    caplog.set_level(logging.DEBUG)
    world = await make_world(api_keys=("sk-alpha", "sk-beta"))
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    for path in ("/health", "/ready"):
        assert (await world.get(path))[0] == 200
    for path in ("/metrics", "/v1/models", "/v1/models/m", "/load", "/version", "/ping", "/nope"):
        assert (await world.get(path))[0] == 401, path
    wrong = ("sk-alph", "sk-alphaa", "", "ä")
    for authorization in (None, "sk-alpha", "Basic sk-alpha", *(f"Bearer {key}" for key in wrong)):
        headers = {} if authorization is None else {"Authorization": authorization}
        status, got, body = await world.post("/v1/completions", TEXT, headers=headers)
        assert status == 401
        assert body["error"]["type"] == "AuthenticationError"
        assert got["WWW-Authenticate"] == "Bearer"
    assert world.generator.requests == {}
    tenants = []
    for key in ("sk-alpha", "sk-beta"):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await world.post("/v1/completions", TEXT, headers=headers))[0] == 200
        tenants.append(world.generator.last[0].tenant)
        assert tenants[-1] == hashlib.sha256(key.encode()).hexdigest()[:16]
    assert "sk-alpha" not in caplog.text
    assert "Hello" not in caplog.text


async def test_without_keys_everybody_is_one_tenant(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    headers = {"Authorization": "Bearer anything"}
    assert (await world.post("/v1/completions", TEXT, headers=headers))[0] == 200
    assert world.generator.last[0].tenant == ""


# -- clients that leave, clients that do not read --------------------------------------------------


@pytest.mark.parametrize("body", [TEXT, STREAM, TEXT | {"n": 3}])
async def test_a_client_that_leaves_before_the_first_token(world, tools, body):
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(tools.post_bytes("/v1/completions", json.dumps(body).encode()))
    count = body.get("n", 1)
    await until(lambda: len(world.generator.requests) == count)
    writer.close()
    await until(lambda: len(world.generator.aborted) == count)
    assert sorted(world.generator.aborted) == sorted(world.generator.requests)
    await until(lambda: world.server.active == 0)


async def test_a_client_that_leaves_in_the_middle_of_a_stream(world, tools):
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(tools.post_bytes("/v1/completions", json.dumps(STREAM).encode()))
    await until(lambda: world.generator.requests)
    request, sink = world.generator.last
    sink.push(TokenEvent(request.id, 0, world.ids("Hi")))
    await reader.readuntil(b"data: ")
    writer.transport.abort()
    await until(lambda: world.generator.aborted == [request.id])
    sink.push(TokenEvent(request.id, 0, world.ids("Hi")))  # late tokens do no harm
    await until(lambda: world.server.active == 0)
    assert world.services.metrics.models["m"].success["abort"] == 1


async def test_a_client_that_does_not_read_is_cut_off(world, tools):
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", world.port))
    raw.sendall(tools.post_bytes("/v1/completions", json.dumps(STREAM).encode()))
    await until(lambda: world.generator.requests)
    request, sink = world.generator.last
    tokens = world.ids("The quick brown fox " * 50)
    sent = 0
    async with asyncio.timeout(30):
        while not world.generator.aborted:
            sink.push(TokenEvent(request.id, 0, tokens))
            sent += 1
            await asyncio.sleep(0)
    assert 500 < sent < 20_000
    await until(lambda: world.server.active == 0)
    raw.close()


async def test_tokens_after_stop_are_ignored_and_the_connection_lives_on(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("a STOP b STOP c"))
    for _ in range(3):
        async with world.http.post(
            world.url("/v1/completions"), json=STREAM | {"stop": "STOP"}
        ) as response:
            events = tools.stream_events(await response.read())
        assert "".join(e["choices"][0]["text"] for e in events[:-1]) == "a "
    assert len(world.http.connector._conns) == 1


async def test_keep_alive_adds_no_delay(world, tools):
    """Nagle's algorithm against delayed acknowledgements would cost 40 ms a request."""
    world.generator.script = lambda r: tools.events(r, world.ids("Hi you there"))
    body = json.dumps(STREAM).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        writer.write(tools.post_bytes("/v1/completions", body))
        await reader.readuntil(b"data: {")
        times.append(time.perf_counter() - started)
        await reader.readuntil(b"0\r\n\r\n")
    assert sorted(times)[10] < 0.02
    writer.close()


# -- the end ---------------------------------------------------------------------------------------


async def test_stop_lets_streams_finish(world, tools):
    world.generator.tick_s = 0.02
    world.generator.script = lambda r: tools.events(r, world.ids("The quick brown fox jumps"))
    post = asyncio.ensure_future(world.http.post(world.url("/v1/completions"), json=STREAM))
    await until(lambda: world.generator.requests)
    await world.server.stop(grace_s=5.0)
    response = await post
    assert (await response.read()).endswith(b"data: [DONE]\n\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", world.port), timeout=1).close()


async def test_stop_ends_what_does_not_finish_with_an_error(world):
    stream = asyncio.ensure_future(world.http.post(world.url("/v1/completions"), json=STREAM))
    plain = asyncio.ensure_future(world.http.post(world.url("/v1/completions"), json=TEXT))
    await until(lambda: len(world.generator.requests) == 2)
    for request, sink in world.generator.requests.values():
        sink.push(TokenEvent(request.id, 0, world.ids("Hi")))
    response = await stream
    await world.server.stop(grace_s=0.05)
    events = (await response.read()).strip().split(b"\n\n")
    assert json.loads(events[-1][6:])["error"]["code"] == 503
    assert (await plain).status == 503
    assert len(world.generator.aborted) == 2


async def test_requests_log_one_line_without_their_text(world, tools, caplog):
    caplog.set_level(logging.INFO)
    world.generator.script = lambda r: tools.events(r, world.ids("SECRET answer"))
    await world.post("/v1/completions", {"model": "m", "prompt": "SECRET question"})
    lines = [r.getMessage() for r in caplog.records if "request_finished" in r.getMessage()]
    assert len(lines) == 1
    assert "finish=length" in lines[0]
    assert "SECRET" not in caplog.text
