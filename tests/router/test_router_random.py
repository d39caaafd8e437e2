"""A router under everything at once: instances come, fill up and die, clients come and leave.

Whatever happens, every request is answered once or has left, what its client got is a prefix of
what an undisturbed run gives, and whole where it ended well.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from blitzgw.errors import GenerationFailed, RequestError, Unavailable
from tests.router.router_kit import HOLD_S, MAX_ATTEMPTS, MAX_HELD, Instance, World

MODELS = st.sampled_from(["m", "other"])
CALLBACKS = st.sampled_from(["none", "none", "fail", "push"])
RARELY = st.sampled_from([False, False, False, True])
ONE = st.randoms(use_true_random=False)


class Traffic(RuleBasedStateMachine):
    stale = Bundle("stale")

    def __init__(self):
        super().__init__()
        self.world = World()
        self.router = self.world.router
        self.instances: dict[str, Instance] = {}

    @initialize()
    def begin(self):
        for name, model in (("a", "m"), ("b", "m"), ("c", "other")):
            self.up(name, model, 8, False, None)

    @rule(models=st.lists(MODELS, min_size=1, max_size=4), max_tokens=st.integers(1, 9),
          choice=st.integers(0, 9), callback=CALLBACKS)  # fmt: skip
    def ask(self, models, max_tokens, choice, callback):
        for model in models:
            self.ask_one(model, max_tokens, choice, callback)

    def ask_one(self, model, max_tokens, choice, callback):
        name = f"r{len(self.world.sinks)}"
        try:
            sink = self.world.ask(name, model, max_tokens=max_tokens, choice=choice)
        except RequestError:
            self.world.sinks[name].gone = True
            return
        if callback == "fail":
            sink.on_fail = lambda error: self.leave_some(sink)
        if callback == "push":
            sink.on_push = lambda event: event.finish and self.leave_some(sink)

    def leave_some(self, sink):
        """What the API does when one choice of several fails: it aborts the others."""
        for other in list(self.world.sinks.values()):
            if not other.ended and other.request.choice == sink.request.choice:
                self.world.leave(other)

    def pending(self):
        return [sink for sink in self.world.sinks.values() if not sink.ended]

    @rule(random=ONE)
    def leave(self, random):
        if self.pending():
            self.world.leave(random.choice(self.pending()))

    @precondition(lambda self: len(self.instances) < 3)
    @rule(model=MODELS, room=st.integers(0, 8), at_once=RARELY, refuses=RARELY)
    def another(self, model, room, at_once, refuses):
        name = min({"a", "b", "c"} - self.instances.keys())
        self.up(name, model, room, at_once, Unavailable("no") if refuses else None)

    def up(self, name, model, room, at_once, refusal):
        instance = Instance(name, model, room, at_once)
        instance.refusal = refusal
        self.instances[name] = instance
        self.world.revive(instance)

    @rule(room=st.integers(1, 5))
    def recover(self, room):
        for instance in self.instances.values():
            instance.room, instance.refusal = room, None

    @precondition(lambda self: self.instances)
    @rule(random=ONE, target=stale)
    def down(self, random):
        """Lose an instance; it may have generated something that nobody has been told."""
        return self.lose(random.choice(sorted(self.instances)), random.random())

    def lose(self, name, share):
        instance = self.instances.pop(name)
        events = [instance.step(i) for i in list(instance.requests)[: round(9 * share)]]
        self.world.down(instance)
        return events

    @rule(events=consumes(stale))
    def tell_late(self, events):
        before = {name: list(sink.tokens) for name, sink in self.world.sinks.items()}
        self.router.on_tokens(events)
        assert before == {name: sink.tokens for name, sink in self.world.sinks.items()}

    @rule(count=st.integers(1, 3))
    def step(self, count):
        """One step of every instance: some tokens for each of its requests."""
        for name in list(self.instances):
            self.step_one(name, count)

    def step_one(self, name, count):
        instance = self.instances[name]
        self.router.on_tokens([instance.step(i, count) for i in list(instance.requests)])

    @precondition(lambda self: self.instances)
    @rule(random=ONE)
    def fail_step(self, random):
        """A step raises: some requests are lost, the instance lives on."""
        requests = self.instances[random.choice(sorted(self.instances))].requests
        lost = [i for i in requests if random.random() < 0.7]
        for i in lost:
            del requests[i]
        self.router.on_lost(lost, "a step failed")

    @rule(seconds=st.sampled_from([0.1, HOLD_S / 3, HOLD_S + 1]))
    def wait(self, seconds):
        self.world.wait(seconds)
        held_since = self.world.clock.now() - HOLD_S
        assert all(e.held_since > held_since for e in self.router._held.values())

    @precondition(lambda self: not self.instances)
    @rule(model=MODELS)
    def give_up(self, model):
        self.router.give_up(model, "broken")
        assert self.router.held(model) == 0

    @invariant()
    def every_request_is_somewhere_or_over(self):
        for sink in self.world.sinks.values():
            name = sink.request.id
            places = [i for i in self.instances.values() if name in i.requests]
            held = name in self.router._held
            assert len(places) + held == (not sink.ended), f"{name} is at {places}, held: {held}"
            if places:
                assert self.router.instance_of(name) == places[0].instance
            assert sink.ended == (name not in self.router._log)

    @invariant()
    def what_clients_got_is_right(self):
        for sink in self.world.sinks.values():
            whole = sink.whole()
            assert sink.tokens == whole[: len(sink.tokens)]
            assert len(sink.finishes) + len(sink.errors) <= 1
            if sink.finishes:
                assert sink.tokens == whole

    @invariant()
    def bounds_are_kept(self):
        for entry in self.router._log.values():
            assert entry.attempt < MAX_ATTEMPTS
        for model in ("m", "other"):
            new = [e for e in self.router._held.values()
                   if e.attempt == 0 and e.request.model == model]  # fmt: skip
            assert len(new) <= MAX_HELD
        for sink in self.world.sinks.values():
            for error in sink.errors:
                assert isinstance(error, GenerationFailed | Unavailable)

    def teardown(self):
        """In the end an instance of each model takes all: whoever still waits is answered."""
        for name in list(self.instances):
            self.lose(name, 0)
        for model in ("m", "other"):
            instance = self.world.up(f"last-{model}", model=model)
            self.instances[instance.instance] = instance
        for _ in range(10):
            for name in list(self.instances):
                self.step_one(name, 3)
            self.router.tick()
        assert self.pending() == []
        assert not self.router._log
        assert not self.router._held


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
