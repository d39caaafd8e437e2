"""Answers of a node's /cluster/… as `blitzgw inspect` gets them, and a server that gives them."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading


def node(name="node-1", status="alive", **more):
    return {
        "name": name,
        "boot": f"boot-of-{name}",
        "status": status,
        "http": "http://127.0.0.1:8000",
        "address": "127.0.0.1:40123",
        "draining": False,
        "devices": [
            {"id": "cpu0", "kind": "cpu", "name": "Xeon", "memory_bytes": 16 << 30, "claim": 1}
        ],
        "models": ["smollm2-135m"],
        "instances": 1,
        "host": {
            "free_bytes": 8 << 30,
            "zone": None,
            "networks": [],
        },
        "copies": [],
        "state_age_s": 3.2,
        "started": 1_700_000_000,
        "software": {},
    } | more


def instance(**more):
    return {
        "id": "node-1/cpu0/smollm2-135m",
        "model": "smollm2-135m",
        "digest": "abcdef0123456789",
        "node": "node-1",
        "device": "cpu0",
        "role": "both",
        "state": "serving",
        "layers_resident": 30,
        "layers_total": 30,
        "weights": "fedcba9876543210",
        "blobs": [*range(32)],
        "helps": None,
        "running": 3,
        "waiting": 12,
        "queued_tokens": 4096,
        "kv_usage": 0.425,
        "prefill_tokens_per_s": 2267.4,
        "decode_step_s": 0.0166,
        "load_age_s": 0.4,
    } | more


def model(**more):
    return {
        "name": "smollm2-135m",
        "aliases": [],
        "digest": "abcdef0123456789",
        "layers": 30,
        "since": 1_700_000_000,
        "nodes": ["node-1", "node-2"],
        "instances": {"loading": 1, "serving": 2},
        "weights": "fedcba9876543210",
        "host_copies": 1,
        "host_copies_wanted": 1,
        "host_cached": 0,
        "disks": ["node-1"],
        "conflict": False,
        "prevails": True,
    } | more


def request(**more):
    return {
        "id": "cmpl-0123456789abcdef",
        "model": "smollm2-135m",
        "ingress": "node-1",
        "instance": "node-2/cpu0/smollm2-135m",
        "attempt": 1,
        "prompt_tokens": 20,
        "output_tokens": 12,
        "max_tokens": 64,
        "age_s": 1.6,
    } | more


@contextlib.contextmanager
def serving(answer):
    """Serve `answer(path, headers) -> (status, body)` on a free port; yield its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answer(self.path, self.headers)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
