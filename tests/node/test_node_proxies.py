"""nginx and haproxy in front of a node: tokens pass one by one, connections are kept."""

import asyncio
import shutil
import socket
import subprocess
import time

import pytest

from tests.support.nodes import completion, paced, running, stream_all, until
from tests.support.ports import free_port

TOKENS = 30
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream blitzgw {{ server 127.0.0.1:{upstream}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://blitzgw; proxy_buffering off; {more} }}
  }}
}}
"""

# Without http-no-delay haproxy lets the kernel collect small chunks for up to 200 ms.
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  option httpchk GET /ready
  option http-no-delay
  {more}
  server node 127.0.0.1:{upstream} check inter 200ms
"""
WAYS = {
    "nginx-1.0": (NGINX, "", False),  # nginx' default towards upstreams, a connection each
    "nginx-keep-alive": (NGINX, 'proxy_http_version 1.1; proxy_set_header Connection "";', True),
    "haproxy-keep-alive": (HAPROXY, "http-reuse always", True),
    "haproxy-close": (HAPROXY, "option httpclose", False),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with running(tmp_path_factory.mktemp("proxies"), paced(fixed_us=1000.0)) as node:
        yield node


@pytest.fixture(params=WAYS)
def proxy(request, node, tmp_path):
    """The port of a proxy, and whether it keeps its connections to the node."""
    name = request.param.partition("-")[0]
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip(f"{name} is not installed")
    template, more, keeps = WAYS[request.param]
    port = free_port()
    file = tmp_path / "proxy.conf"
    file.write_text(template.format(folder=tmp_path, upstream=node.port, port=port, more=more))
    options = ["-p", str(tmp_path), "-c"] if name == "nginx" else ["-db", "-f"]
    with (tmp_path / "proxy.log").open("wb") as log:
        process = subprocess.Popen([program, *options, str(file)], stdout=log, stderr=log)
    try:
        until(lambda: _answers(port, process, tmp_path), name)
        yield port, keeps
    finally:
        process.terminate()
        process.wait(30)


def _answers(port, process, folder):
    assert process.poll() is None, (folder / "proxy.log").read_text()
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(100)
    except OSError:
        return False


def connections(node, port):
    """The established connections to the node, as the kernel sees them."""
    local = f"{node.port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return {row[2] for row in rows if row[1].endswith(f":{local}") and row[3] == "01"}


async def test_tokens_pass_one_by_one(node, proxy):
    port, _ = proxy
    body = completion("Hello", TOKENS, ignore_eos=True)
    (direct,) = await stream_all(node.url, [body])
    begin = time.monotonic()
    (answer,) = await stream_all(f"http://127.0.0.1:{port}", [body])
    assert answer.text == direct.text
    assert answer.done
    assert answer.usage["completion_tokens"] == TOKENS
    span = answer.at_s[-1] - begin
    assert span > 0.03 * TOKENS * 0.9  # a step takes 30 ms
    assert answer.at_s[0] - begin < span / 2
    gaps = [late - early for early, late in zip(answer.at_s, answer.at_s[1:], strict=False)]
    assert sum(gap > 0.01 for gap in gaps) > TOKENS / 2


async def test_many_at_once(node, proxy):
    port, _ = proxy
    bodies = [completion(f"Tale {i}", 10, ignore_eos=True) for i in range(32)]
    direct = await stream_all(node.url, bodies)
    answers = await stream_all(f"http://127.0.0.1:{port}", bodies)
    assert [answer.text for answer in answers] == [answer.text for answer in direct]


async def test_connections_are_kept_where_the_proxy_keeps_them(node, proxy):
    port, keeps = proxy
    url = f"http://127.0.0.1:{port}"
    await stream_all(url, [completion("Hello", 2)])
    first = connections(node, port)
    await stream_all(url, [completion("Hello", 2)])
    if keeps:
        assert first & connections(node, port)


async def test_a_client_that_leaves_is_noticed_through_a_proxy(node, proxy):
    port, _ = proxy
    body = completion("Hello", 1500, ignore_eos=True)
    task = asyncio.ensure_future(stream_all(f"http://127.0.0.1:{port}", [body]))
    await asyncio.to_thread(until, lambda: node.load() == (1, 0))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(until, lambda: node.load() == (0, 0))


async def test_errors_pass(node, proxy):
    port, _ = proxy
    (answer,) = await stream_all(f"http://127.0.0.1:{port}", [completion("Hello", -1)])
    assert answer.status == 400
    assert answer.error["param"] == "max_tokens"
