"""What a grammar leaves a sequence to choose from: llguidance's matchers, a copy for each sequence.

    grammar ── compiled once ──► matcher ── copied ──► constraint ── output tokens ──► mask

A mask depends on the grammar and the output tokens alone: whoever goes on with a sequence, on
another worker or after it was preempted, gets the same ones. Special tokens are never allowed, but
those that end a sequence once its text is complete, and where it cannot go on only those.

llguidance is imported and the tokenizer read when the first mask is asked for, in the thread that
runs the steps: what is needed now cannot be waited for elsewhere, and who has no use for grammars
pays nothing. That takes 0.24 s for a vocabulary of 49k tokens, in seconds of one core.

What a grammar leaves no choice about is taken in the longest tokens. llguidance would ask the
tokenizer instead, which makes special tokens of a text that looks like one.
"""

from __future__ import annotations

import re
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from blitzgw.errors import CheckpointError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

Result = TypeVar("Result")

Mask = NDArray[np.bool_]
"""`[vocabulary]`."""

ReadTokens = Callable[[], tuple[list[bytes], frozenset[int]]]
"""Returns each token's bytes, and which are special. Raises CheckpointError."""

MAX_COMPILED = 32
"""Grammars of an instance that are kept compiled; ordinary ones take 1 ms to compile again."""

MAX_LEXER_STATES = 20_000
"""Of one grammar, with 1 to 2 kB each; ordinary schemas have some hundreds."""

MAX_ERROR_CHARS = 200
"""How much of llguidance's message is logged or told; the rest repeats the grammar."""

_QUOTED = re.compile(r"\n +\d+ \| ")

STACK_BYTES = 256 << 20
"""Stack of a thread that compiles, of which only what is used is memory. A schema within a schema
takes llguidance 8 KB deeper: MAX_GRAMMAR_BYTES have room for 7,000 of them, the usual 8 MiB for
1,000, and where a stack ends, so does the process."""

MAX_COMPILE_S = 5.0
"""How long anybody waits for a grammar to be compiled: 20 times what `parser_limits` allow, should
they know nothing of what it is that takes so long."""

_STACK_SIZE = threading.Lock()


def deeply(call: Callable[[], Result], limit_s: float = MAX_COMPILE_S) -> Result:
    """Return the result of a call in a thread with a deep stack, or raise what it raises.

    Raises TimeoutError after `limit_s`; the call then goes on for nobody.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # it is raised where the result is waited for
            outcome.set_exception(error)

    with _STACK_SIZE:
        usual = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)
    try:
        return outcome.result(limit_s)
    except TimeoutError:
        raise TimeoutError(f"compiling it takes more than {limit_s:.0f} s") from None


def parser_limits() -> LLParserLimits:
    """Return what a grammar may cost: 0.2 s to compile, or 0.4 s to refuse, and 50 ms for a mask.

    That is the worst of what was tried, in seconds of one core; 2,000 texts to choose from, or 50
    tools of 8 parameters, are far below. Messages are not to quote outputs.
    """
    from llguidance import LLParserLimits  # noqa: PLC0415

    return LLParserLimits(
        max_items_in_row=10_000,  # an object of 2,000 optional keys takes 8,000
        initial_lexer_fuel=300_000,
        step_lexer_fuel=100_000,
        step_max_items=30_000,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=20_000,
        verbose_errors=False,
    )


def short(error: str) -> str:
    """Return the gist of a message of llguidance on one line, without the lines that it quotes."""
    error = _QUOTED.split(error, maxsplit=1)[0]
    return " ".join(error.removesuffix("<non-verbose/>").split())[:MAX_ERROR_CHARS]


class Grammars:
    """Grammars over one model's tokens. `vocab` is the number of its logits.

    What cannot be compiled, or not without llguidance or the tokens, lets a sequence end and do
    nothing else: steps go on for everybody. Why is told on stderr, and that by `Constraint.broken`.
    """

    def __init__(self, read_tokens: ReadTokens, vocab: int, eos_ids: Sequence[int]) -> None:
        self._read_tokens, self._vocab = read_tokens, vocab
        self._eos = sorted({token for token in eos_ids if 0 <= token < vocab})
        self._compiled: OrderedDict[str, LLMatcher | None] = OrderedDict()
        self.ends: Mask = np.zeros(vocab, np.bool_)
        """What ends a sequence; all tokens where nothing does."""
        self.ends[self._eos or slice(None)] = True

    def constrain(self, grammar: str) -> Constraint:
        """Return the constraint of a new sequence: nothing until it is asked for a mask."""
        return Constraint(self, grammar)

    def matcher(self, grammar: str) -> LLMatcher | None:
        """Return a matcher before the first token; None where there can be none."""
        if grammar in self._compiled:
            self._compiled.move_to_end(grammar)
        else:
            if len(self._compiled) >= MAX_COMPILED:
                self._compiled.popitem(last=False)
            self._compiled[grammar] = self._compile(grammar)
        compiled = self._compiled[grammar]
        return None if compiled is None else compiled.deep_copy()

    def mask(self, matcher: LLMatcher) -> Mask:
        """Return what may come next. Raises ValueError where nothing can."""
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise ValueError(short(matcher.get_error()))
        bits = np.unpackbits(packed, bitorder="little", count=self._vocab)
        return bits.view(np.bool_)

    def _compile(self, grammar: str) -> LLMatcher | None:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return None
        from llguidance import LLMatcher  # noqa: PLC0415

        limits = parser_limits()
        try:
            matcher = deeply(lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=limits))
        except TimeoutError as error:
            complain(str(error))
            return None
        if matcher.is_error():
            complain(matcher.get_error())
            return None
        return matcher

    @cached_property
    def _tokenizer(self) -> LLTokenizer | None:
        """The tokens' bytes as a trie; None, for good, where it cannot be had."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415

            tokens = _Tokens(*self._read_tokens(), self._eos)
            tokens.trie = LLTokenizer(TokenizerWrapper(tokens), eos_token=self._eos)
        except (ImportError, CheckpointError, ValueError) as error:
            complain(str(error))
            return None
        weakref.finalize(self, setattr, tokens, "trie", None)  # or each keeps the other for ever
        return tokens.trie


class _Tokens:
    """A vocabulary as llguidance takes it."""

    bos_token_id = None
    trie: LLTokenizer | None = None

    def __init__(self, tokens: list[bytes], special: frozenset[int], eos: list[int]) -> None:
        if not eos or eos[-1] >= len(tokens):
            raise ValueError(f"no token that ends a sequence: {eos}")
        self.tokens, self.eos_token_id = tokens, eos[0]
        self.special_token_ids = sorted({*special, *eos})

    def __call__(self, text: bytes) -> list[int]:
        return [] if self.trie is None else self.trie.greedy_tokenize(text.decode())


class Constraint:
    """What a grammar allows one sequence. It remembers how far it has come, and may forget it."""

    __slots__ = ("_grammar", "_grammars", "_matcher", "_taken", "broken")

    def __init__(self, grammars: Grammars, grammar: str) -> None:
        self._grammars, self._grammar = grammars, grammar
        self.broken = False
        """It could not be followed: what was allowed last is none of its doing."""
        self._matcher: LLMatcher | None = None
        self._taken = -1
        """How many output tokens the matcher has taken; -1: there is none."""

    def allowed(self, tokens: Sequence[int], start: int, stop: int) -> Mask:
        """Return which tokens may follow the output `tokens[start:stop]`; some always may."""
        count = stop - start
        if not 0 <= self._taken <= count:
            self._matcher, self._taken = self._grammars.matcher(self._grammar), 0
        matcher, new = self._matcher, tokens[start + self._taken : stop]
        self._taken = count
        self.broken = matcher is None
        if matcher is None:
            return self._grammars.ends
        try:
            taken = matcher.try_consume_tokens(list(new))
            if taken < len(new) and not matcher.is_stopped():  # once stopped, it takes no more
                raise ValueError("the output is none of its grammar, or costs too much to follow")
            return self._grammars.mask(matcher)
        except ValueError as error:
            complain(str(error))
            self._matcher, self.broken = None, True
            return self._grammars.ends


def complain(error: str) -> None:
    """Tell the operator why an output could not be held to its grammar."""
    sys.stderr.write(f"grammar_failed error={short(error)}\n")
