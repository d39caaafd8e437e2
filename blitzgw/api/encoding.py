"""Text to tokens: by `fastokens` where it is installed and proves equal, else by `tokenizers`.

The first takes an eighth of the second's time and releases the GIL, also while it is built. That
takes half a second and begins with the first text, on a thread; until then, and for every text that
it refuses, there is `tokenizers`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from importlib import import_module
from typing import Any

from blitzgw.hugepages import gather

FastTokenizer: Any = None
with contextlib.suppress(ImportError):  # there is no wheel for every platform
    FastTokenizer = import_module("fastokens").Tokenizer

log = logging.getLogger(__name__)

INLINE_CHARS, FAST_INLINE_CHARS = 2_000, 20_000
"""Texts up to this length are tokenised on the event loop: below 1 ms, and several times the cost
of a hop to a thread and back. Longer ones go to a thread, where either releases the GIL."""

PROBES = (
    "The quick brown fox doesn't jump; it'll WALK, won't it? We've 12,345.67 reasons (or 0x1F).",
    "  two  spaces, a\ttab,\n\nan empty line\r\nand an end \n",
    "Grüße, naïve façade, e\u0301 \ufb01 \u00bd; Привет, мир! 你好,世界。こんにちは 안녕 שלום سلام",
    "😀👍🏽👩\u200d👩\u200d👧 — “quotes” … \u00a0\u200b\ufeff\u0000 ａｂｃ ٣٤",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # <b>&amp;</b>\n\n\n\tpass",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 111111111111 !!!!!!!! ________ \u0301\u0301",
    "<s>[INST] <|im_start|>user\n<|endoftext|></s> <unk> <|eot_id|> <0x0A> ▁ Ġ",
    "",
)
"""What both must agree on, alone and joined, before the faster one is believed."""


class Encoder:
    """Tokenises for one vocabulary; `tokenizer` is from the tokenizer.json at `path`."""

    def __init__(self, tokenizer: Any, path: str) -> None:
        self._tokenizer, self._path = tokenizer, path
        self._fast: Any = None
        self._begun = FastTokenizer is None

    @property
    def inline_chars(self) -> int:
        """Characters that are tokenised without holding up the event loop for long."""
        return INLINE_CHARS if self._fast is None else FAST_INLINE_CHARS

    def encode(self, texts: list[str], special: bool) -> list[list[int]]:
        """Return the token ids of texts; `special`: with those that begin or end each."""
        fast = self._fast
        if fast is not None:
            try:
                return _ids(fast, texts, special)
            except BaseException as error:  # a panic of Rust is no Exception
                _raise_if_ours(error)
        elif not self._begun:
            self._begun = True
            # no daemon: one that comes out of Rust while Python ends takes the process down
            threading.Thread(target=self.hasten, name="fastokens").start()
        return self._slowly(texts, special)

    def hasten(self) -> None:
        """Build the faster tokenizer, and use it from now on if it is equal."""
        try:
            fast = FastTokenizer.from_file(self._path)
            fast.no_truncation()
            fast.no_padding()
            texts = [*PROBES, "".join(PROBES), " ".join(reversed(PROBES))]
            for special in (False, True):
                if _ids(fast, texts, special) != self._slowly(texts, special):
                    raise ValueError("it gives other tokens")
        except BaseException as error:  # there are kinds of tokenizers that it does not know
            _raise_if_ours(error)
            log.info("fastokens_not_used path=%s reason=%s", self._path, error)
            return
        self._fast = fast
        trim_heap()
        gather()

    def _slowly(self, texts: list[str], special: bool) -> list[list[int]]:
        # computes no offsets and releases the GIL
        batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        return [encoding.ids for encoding in batch]


def _ids(fast: Any, texts: list[str], special: bool) -> list[list[int]]:
    return [fast.encode(text, add_special_tokens=special).ids for text in texts]


def _raise_if_ours(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error


def trim_heap() -> None:
    """Give memory that a tokenizer's JSON has taken back to the system: tens of megabytes."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
