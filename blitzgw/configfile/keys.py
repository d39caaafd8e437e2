"""Keys: those that clients send, and those that seal what goes between nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from blitzgw.config import ClusterConfig, HttpConfig
from blitzgw.configfile.tables import Mistakes

CLUSTER_KEY_VARIABLE = "BLITZGW_CLUSTER_KEY"
"""The environment variable that holds a cluster key, or two with a comma between them."""

MAX_KEY_FILE_BYTES = 1 << 20
"""Room for ten thousand keys; what is larger was named by mistake."""

MIN_CLUSTER_KEY_LENGTH = 32
"""Characters: as many hexadecimal digits carry 128 bits, which nobody guesses."""

MAX_CLUSTER_KEYS = 2
"""The old one and the new one while keys are changed; each more is one more to be stolen."""

MAKE_CLUSTER_KEY = "openssl rand -hex 32 > cluster.key; chmod 600 cluster.key"
"""How an operator makes a key."""


def with_api_key_file(
    http: HttpConfig, base: Path, mistakes: Mistakes
) -> tuple[HttpConfig, list[str]]:
    """Add the keys of `api_key_file`, and warn where others can read it."""
    if not http.api_key_file:
        return http, []
    path = key_path(http.api_key_file, base)
    try:
        keys, warnings = read_keys(path)
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror}); create it with one key a line"
        mistakes.add("http.api_key_file", reason)
        return http, []
    if not keys or not all(re.fullmatch("[!-~]+", key) for key in keys):
        mistakes.add("http.api_key_file", f"{path} does not hold keys of ASCII, one a line")
    return replace(http, api_keys=tuple(dict.fromkeys((*http.api_keys, *keys)))), warnings


def read_cluster_keys(
    cluster: ClusterConfig, base: Path, environment: Mapping[str, str], mistakes: Mistakes
) -> tuple[tuple[str, ...], list[str]]:
    """Return the keys that nodes share, none in a cluster of one, and warnings.

    As everywhere an option goes before the environment, and the environment before the file.
    """
    written = environment.get(CLUSTER_KEY_VARIABLE, "")
    if written and "cluster.key_file" not in mistakes.options:
        keys = _checked(written.split(","), None, mistakes)
        text = f"${CLUSTER_KEY_VARIABLE} is set: it replaces the keys of cluster.key_file"
        return keys, [text] if cluster.key_file else []
    if not cluster.key_file:
        return (), []
    path = key_path(cluster.key_file, base)
    try:
        lines, warnings = read_keys(path)
    except OSError as error:
        text = f"{path} cannot be read ({error.strerror}); make one: {MAKE_CLUSTER_KEY}"
        mistakes.add("cluster.key_file", text)
        return (), []
    return _checked(lines, path, mistakes), warnings


def _checked(written: Iterable[str], path: Path | None, mistakes: Mistakes) -> tuple[str, ...]:
    """Return the keys without repetition; what is wrong is noted without showing any of them.

    A `path` of None is the environment.
    """
    keys = tuple(dict.fromkeys(key.strip() for key in written))
    proper = re.compile(rf"[!-~]{{{MIN_CLUSTER_KEY_LENGTH},}}")
    if not 1 <= len(keys) <= MAX_CLUSTER_KEYS or not all(map(proper.fullmatch, keys)):
        layout = "a comma between them" if path is None else "one a line"
        text = f"does not hold one or two keys, {layout}, of {MIN_CLUSTER_KEY_LENGTH} or more"
        text += f" printable ASCII characters; make one: {MAKE_CLUSTER_KEY}"
        if path is None:
            mistakes.add("cluster.key_file", text, source=f"${CLUSTER_KEY_VARIABLE}")
        else:
            mistakes.add("cluster.key_file", f"{path} {text}")
    return keys


def key_path(written: str, base: Path) -> Path:
    """Return where a key file is; a relative path counts from `base`."""
    return (base / os.path.expanduser(written)).absolute()


def read_keys(path: Path) -> tuple[list[str], list[str]]:
    """Return the lines that are neither empty nor # comments, and a warning where others can read.

    Raises `OSError`.
    """
    with path.open("rb") as file:
        exposed = os.fstat(file.fileno()).st_mode & 0o077
        text = file.read(MAX_KEY_FILE_BYTES).decode("utf-8", "replace")
    lines = (line.strip() for line in text.split("\n"))
    keys = [line for line in lines if line and not line.startswith("#")]
    return keys, [f"{path} can be read by others: chmod 600 it"] if exposed else []
