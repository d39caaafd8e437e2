"""From a request body to generations: what is wanted, of which model, from which prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blitzgw.api.bodies import ChatBody, CompletionBody
from blitzgw.api.chunks import Tally
from blitzgw.api.exchange import Exchange
from blitzgw.api.generation import Options
from blitzgw.api.grammars import read_grammar
from blitzgw.api.metrics import ModelMetrics
from blitzgw.api.models import ModelEntry
from blitzgw.api.prompts import Prompt, chat_prompt, completion_prompts
from blitzgw.api.sampling import Lengths, Stopping, check_scores, read_seed
from blitzgw.api.services import Services
from blitzgw.api.tools import ToolUse, read_tools
from blitzgw.api.wishes import read_wishes
from blitzgw.core.request import GenerationRequest
from blitzgw.errors import InvalidRequest

MAX_CHOICES = 1024
"""Choices of one request, all prompts together: each is a generation of its own."""


@dataclass(frozen=True, slots=True)
class Work:
    """A request that has been understood. `requests` are in the order of choices."""

    exchange: Exchange
    entry: ModelEntry
    options: Options
    stopping: Stopping
    requests: list[tuple[GenerationRequest, Prompt]]
    response_id: str
    created: int
    tally: Tally
    metrics: ModelMetrics
    tools: ToolUse | None = None
    mute: bool = False
    """Only prompts are repeated."""


async def understand(
    services: Services, exchange: Exchange, body: ChatBody | CompletionBody, entry: ModelEntry
) -> Work:
    """Check a body against its model and tokenise it; raises InvalidRequest."""
    grammar = await read_grammar(body, entry.spec.eos_ids)
    lengths, wishes = Lengths(body), read_wishes(body, entry.spec.shape.vocab)
    seed = read_seed(body, services.draw_seed)
    copies, options = wishes.copies, wishes.options
    tools, stopping = None, wishes.stopping
    if isinstance(body, ChatBody):
        prompts = [await chat_prompt(body, entry)]
        tools = await read_tools(body, entry, grammar)
    else:
        prompts = await completion_prompts(body, entry)
    if len(prompts) * copies > MAX_CHOICES:
        raise InvalidRequest(f"at most {MAX_CHOICES} choices fit into one request", param="n")
    if options.echo:
        prompts = [_with_text(prompt, entry, stopping) for prompt in prompts]
    limit = entry.spec.max_model_len
    if tools is not None:
        stopping, grammar = replace(stopping, shown=tools.shown), tools.grammar
    for prompt in prompts:
        check_scores(wishes.params, len(prompt.tokens))
    samplings = [
        wishes.params.begin(*lengths.at(len(prompt.tokens), limit), seed, grammar)
        for prompt in prompts
    ]
    kind = "chatcmpl" if options.chat else "cmpl"
    # with the tenant in it: nobody's requests follow a stranger's session
    session = f"{exchange.tenant}/{exchange.session}" if exchange.session else ""
    requests = [
        GenerationRequest(
            id=f"{kind}-{exchange.unique_id}-{position * copies + copy}",
            model=entry.name,
            tokens=prompt.tokens,
            prompt_length=len(prompt.tokens),
            sampling=sampling,
            choice=position * copies + copy,
            priority=wishes.priority,
            tenant=exchange.tenant,
            session=session,
            digest=entry.digest,
        )
        for position, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        for copy in range(copies)
    ]
    return Work(
        exchange=exchange,
        entry=entry,
        options=options,
        stopping=stopping,
        requests=[(request, prompts[request.choice // copies]) for request in requests],
        response_id=f"{kind}-{exchange.request_id}",
        created=services.unix_time(),
        tally=Tally(sum(len(prompt.tokens) for prompt in prompts)),
        metrics=services.metrics.model(entry.name, limit),
        tools=tools,
        mute=lengths.mute,
    )


def _with_text(prompt: Prompt, entry: ModelEntry, stopping: Stopping) -> Prompt:
    """Give a prompt of token ids the text that `echo` repeats."""
    if prompt.text is not None:
        return prompt
    text = entry.text.decode(prompt.tokens, skip_special_tokens=stopping.skip_special_tokens)
    return Prompt(prompt.tokens, text)
