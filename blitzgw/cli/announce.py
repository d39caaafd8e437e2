"""Say how to talk to a server once it is ready: `python -m blitzgw.cli.announce PID OPTIONS…`.

For scripts that start `blitzgw run OPTIONS…` as process PID. Ends when it has said so, or when the
process has ended.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from typing import TYPE_CHECKING

import click

from blitzgw.cli.serve import read_configuration, run
from blitzgw.errors import BlitzError

if TYPE_CHECKING:
    from blitzgw.config import Config

POLL_S = 0.25
"""Between two looks at a server that is loading."""

GRACE_S = 5.0
"""How long a server may take to find that another one has its port already."""


def main(arguments: list[str]) -> int:
    """Wait for the server of process `arguments[0]` and print a curl command for it."""
    pid, options = int(arguments[0]), arguments[1:]
    try:
        parameters = run.make_context("run", options, resilient_parsing=False).params
        config = read_configuration(parameters)
    except (click.ClickException, click.exceptions.Exit, BlitzError):
        return 0  # the server tells the same
    if config.http.port and _wait_ready(pid, config):
        click.echo(f"\nReady. Try, in another terminal:\n\n{curl_command(config)}\n", err=True)
    return 0


def curl_command(config: Config) -> str:
    """Return a command line that asks the first model something and streams the answer.

    A node without models of its own is asked which ones there are.
    """
    host, port = reachable_host(config), config.http.port
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    key = ['-H "Authorization: Bearer $BLITZGW_API_KEY"'] if config.http.api_keys else []
    if not config.models:
        return " \\\n    ".join([f"curl {url}/models", *key])
    body = {
        "model": config.models[0].name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 64,
        "stream": True,
    }
    quoted = json.dumps(body).replace("'", "'\\''")
    lines = [f"curl -N {url}/chat/completions", "-H 'Content-Type: application/json'", *key]
    return " \\\n    ".join([*lines, f"-d '{quoted}'"])


def _wait_ready(pid: int, config: Config) -> bool:
    """Wait until /ready answers 200; False when the process has ended before."""
    address = (reachable_host(config), config.http.port)
    if _is_ready(*address):
        time.sleep(GRACE_S)  # somebody else's server, unless ours was very quick
    while _is_running(pid):
        if _is_ready(*address):
            return True
        time.sleep(POLL_S)
    return False


def reachable_host(config: Config) -> str:
    """Return the address at which clients of this machine reach the API."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.http.host, config.http.host)  # noqa: S104


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=POLL_S * 4)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
