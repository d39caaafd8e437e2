"""The admin key: a file that the first node to need it makes, and that commands beside it read."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import replace
from pathlib import Path

from blitzgw.config import HttpConfig
from blitzgw.configfile.keys import key_path, read_keys
from blitzgw.configfile.tables import Mistakes
from blitzgw.errors import ConfigError

ADMIN_KEY_FILE = "admin.key"
"""Its name in the cache folder."""

ADMIN_KEY_BYTES = 32
"""Of a key that is made here: 256 random bits."""

MIN_ADMIN_KEY_LENGTH = 32
"""Characters: as many hexadecimal digits carry 128 bits, which nobody guesses."""

MAX_ADMIN_KEYS = 2
"""The old one and the new one while keys are changed."""

_PROPER = re.compile(rf"[!-~]{{{MIN_ADMIN_KEY_LENGTH},}}")


def resolve_admin_key_file(
    http: HttpConfig, cache: str, base: Path, mistakes: Mistakes
) -> tuple[HttpConfig, list[str]]:
    """Settle where the admin key is, and check the file if there is one; nothing is made.

    `cache` is the cache folder, `base` what a relative path counts from. Returns warnings too.
    """
    path = key_path(http.admin_key_file, base) if http.admin_key_file else None
    path = path or Path(cache) / ADMIN_KEY_FILE
    settled = replace(http, admin_key_file=str(path))
    try:
        keys, warnings = read_keys(path)
    except FileNotFoundError:
        return settled, []
    except OSError as error:
        mistakes.add("http.admin_key_file", _unreadable(path, error))
        return settled, []
    if not _are_proper(keys):
        mistakes.add("http.admin_key_file", _improper(path))
    return settled, warnings


def load_admin_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of the file, the one to send first; raises ConfigError."""
    try:
        keys, _ = read_keys(path)
    except OSError as error:
        raise ConfigError([_unreadable(path, error)]) from None
    if not _are_proper(keys):
        raise ConfigError([_improper(path)])
    return tuple(keys)


def ensure_admin_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of the file, which is made with a fresh one if it is not there.

    Of several processes that begin at once all get the same key. Raises ConfigError.
    """
    try:
        if not path.exists():
            _make(path)
    except OSError as error:
        text = f"http.admin_key_file: {path} cannot be made ({error.strerror}); make it yourself:"
        raise ConfigError([f"{text} {_by_hand(path)}"]) from None
    return load_admin_keys(path)


def _make(path: Path) -> None:
    """Write a key beside the file and link it there: whoever sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(fresh, flags, 0o600), "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(ADMIN_KEY_BYTES)}\n")
        with contextlib.suppress(FileExistsError):  # another node was quicker
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _are_proper(keys: list[str]) -> bool:
    return 1 <= len(keys) <= MAX_ADMIN_KEYS and all(map(_PROPER.fullmatch, keys))


def _improper(path: Path) -> str:
    return (
        f"{path} does not hold one or two keys, one a line, of {MIN_ADMIN_KEY_LENGTH} or more"
        " printable ASCII characters; remove it, and the next node to start makes one"
    )


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror}); make one: {_by_hand(path)}"


def _by_hand(path: Path) -> str:
    return f"openssl rand -hex 32 > {path.name}; chmod 600 {path.name}"
