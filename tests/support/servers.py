"""Servers of any make as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence

POLL_S = 0.2
STOP_LIMIT_S = 30.0
SHOWN_CHARACTERS = 4000


class ServerFailed(Exception):
    """A server ended, or did not become ready; the end of what it said follows."""


@contextlib.contextmanager
def serving(
    name: str, command: Sequence[str], ready: str, limit_s: float, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server in a session of its own, and end all of it after.

    It is ready as soon as a GET of the URL `ready` is answered by 200. Raises ServerFailed where
    that does not come to pass within `limit_s`.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | env, start_new_session=True
        )
        try:
            deadline = time.monotonic() + limit_s
            while not answers(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    tail = log.read().decode(errors="replace")[-SHOWN_CHARACTERS:]
                    raise ServerFailed(f"{name} did not become ready:\n{tail}")
                time.sleep(POLL_S)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    """Tell whether a GET is answered by 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
