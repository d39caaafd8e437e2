"""Many routers with old figures share instances: do they all run to the same one?

A simulation in time steps, with a seed: requests of 100 ms arrive at five ingress nodes as fast as
eight of the ten instances could serve them; every node sees every queue as it was 200 ms before.
"""

import random
from collections import Counter
from statistics import mean

from blitzgw.core.ports import Outlook
from blitzgw.core.request import GenerationRequest, SamplingParams
from blitzgw.router import placing
from blitzgw.router.router import Router
from tests.router.router_kit import HOLD_S, MAX_ATTEMPTS, MAX_HELD, Clock, Sink

N_ROUTERS, N_INSTANCES = 5, 10
STEP_S, STALE_S, DURATION_S = 0.01, 0.2, 20.0
RATE = 5000.0
PROMPT = 500
LOAD = 0.8


class Server:
    """An instance: works its queue off, and remembers how long it was."""

    def __init__(self):
        self.queued = 0.0
        self.past = [0.0] * (round(STALE_S / STEP_S) + 1)

    def step(self):
        self.queued = max(0.0, self.queued - RATE * STEP_S)
        self.past = [*self.past[1:], self.queued]


class View:
    """One router's port to a server."""

    model = "m"

    def __init__(self, instance, server):
        self.instance, self.server = instance, server

    def outlook(self):
        return Outlook(int(self.server.past[0]), RATE, 0.001, STALE_S)

    def submit(self, request):
        self.server.queued += len(request.tokens)

    def abort(self, request_id, attempt):
        raise AssertionError("nobody leaves")


def simulate(seed):
    """Return what the busiest instance is sent within STALE_S over the mean, and the mean wait."""
    dice = random.Random(seed)
    limits = {"max_attempts": MAX_ATTEMPTS, "hold_timeout_s": HOLD_S, "max_held": MAX_HELD}
    servers = [Server() for _ in range(N_INSTANCES)]
    routers = [Router(Clock(), **limits, dice=random.Random(dice.random()))
               for _ in range(N_ROUTERS)]  # fmt: skip
    for router in routers:
        for i, server in enumerate(servers):
            router.instance_up(View(f"i{i}", server))
    waits, windows, window = [], [], Counter()
    number = 0
    for step in range(round(DURATION_S / STEP_S)):
        due = (step + 1) * STEP_S * RATE * N_INSTANCES * LOAD / PROMPT
        while number < due:
            name, tokens = f"r{number}", (number,) * PROMPT
            before = [server.queued for server in servers]
            request = GenerationRequest(name, "m", tokens, PROMPT, SamplingParams(1))
            dice.choice(routers).generate(request, Sink(request))
            (place,) = [i for i, server in enumerate(servers) if server.queued > before[i]]
            waits.append(before[place] / RATE)
            window[place] += 1
            number += 1
        for server in servers:
            server.step()
        if step % round(STALE_S / STEP_S) == 0 and window:
            windows.append(max(window.values()) * N_INSTANCES / window.total())
            window.clear()
    return mean(windows), mean(waits)


def always_the_best(prospects, session, dice):
    return min(prospects, key=lambda p: p.predicted_s)


def test_two_random_choices_do_not_make_a_herd(monkeypatch):
    imbalance, wait_s = simulate(1)
    monkeypatch.setattr(placing, "choose", always_the_best)
    herd, herd_wait_s = simulate(1)
    assert imbalance < herd / 2
    assert wait_s < herd_wait_s / 3
