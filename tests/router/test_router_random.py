"""A router under everything at once: instances come, fill up and die, clients come and leave.

Some instances are other nodes': requests are on their way there, are declined, are handed back, and
what the router knows of them is old.

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

from blitzgw.core.peer import Loss
from blitzgw.errors import GenerationFailed, Overloaded, RequestError, Unavailable
from tests.router.router_kit import HOLD_S, MAX_ATTEMPTS, MAX_HELD, Far, Instance, World, packed

MODELS = st.sampled_from(["m", "other"])
CALLBACKS = st.sampled_from(["none", "none", "fail", "push"])
RARELY = st.sampled_from([False, False, False, True])
SESSIONS = st.sampled_from(["", "", "s", "t"])
DIGESTS = st.sampled_from(["", "d", "d", "e"])
PROMPTS = st.sampled_from([(1, 2, 3), (1,) * 70, (1,) * 200, (1,) * 64 + (2,) * 80])
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
        for name, model, far in (("a", "m", False), ("b", "m", True), ("c", "other", False)):
            self.up(name, model, 8, False, None, far=far)

    @rule(models=st.lists(MODELS, min_size=1, max_size=4), max_tokens=st.integers(1, 9),
          choice=st.integers(0, 9), callback=CALLBACKS, session=SESSIONS,
          prompt=PROMPTS, digest=DIGESTS)  # fmt: skip
    def ask(self, models, callback, **fields):
        for model in models:
            self.ask_one(model, callback, **fields)

    def ask_one(self, model, callback, **fields):
        name = f"r{len(self.world.sinks)}"
        try:
            sink = self.world.ask(name, model, **fields)
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

    @precondition(lambda self: len(self.instances) < 5)
    @rule(model=MODELS, room=st.integers(0, 8), at_once=RARELY, refuses=RARELY, far=st.booleans(),
          digest=DIGESTS)  # fmt: skip
    def another(self, model, room, at_once, refuses, far, digest):
        name = min({*"abcde"} - self.instances.keys())
        refusal = Unavailable("no") if refuses else None
        self.up(name, model, room, at_once, refusal, far=far, digest=digest)

    def up(self, name, model, room, at_once, refusal, *, far, digest=""):
        instance = (Far if far else Instance)(name, model, room, at_once)
        instance.refusal = refusal
        self.instances[name] = instance
        self.world.revive(instance, digest)

    @rule(model=MODELS, digest=DIGESTS)
    def redefine(self, model, digest):
        self.router.redefined(model, digest)

    @rule(random=ONE, drains=st.booleans())
    def drain_ours(self, random, drains):
        ours = [i for i in self.instances.values() if not isinstance(i, Far)]
        if ours:
            random.choice(ours).reluctant = drains

    @rule(room=st.integers(1, 5))
    def recover(self, room):
        for instance in self.instances.values():
            instance.room, instance.refusal = room, None

    def far(self):
        return [i for i in list(self.instances.values()) if isinstance(i, Far)]

    @rule(count=st.integers(1, 9))
    def arrive(self, count):
        """What has been on its way is there, or declined: those who are asked next hear later."""
        for instance in self.far():
            instance.arrive(count)

    @precondition(lambda self: self.far())
    @rule(random=ONE, refuses=st.booleans())
    def refuse(self, random, refuses):
        error = random.choice([Overloaded("full", retry_after_s=500), Unavailable("no")])
        random.choice(self.far()).refusal = error if refuses else None

    @precondition(lambda self: self.far())
    @rule(random=ONE)
    def drain(self, random):
        """A node hands back what it has, takes no more, and says so later."""
        instance = random.choice(self.far())
        instance.open, instance.refusal = False, Unavailable("draining")
        instance.give_away()

    @precondition(lambda self: self.far())
    @rule(random=ONE, opens=st.booleans())
    def tell(self, random, opens):
        """One of the old figures is replaced by the present one."""
        instance = random.choice(self.far())
        if opens:
            instance.open, instance.refusal = True, None
        instance.tell()
        self.router.instance_changed(instance.instance)

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
        self.router.on_tokens(packed(events))
        assert before == {name: sink.tokens for name, sink in self.world.sinks.items()}

    @rule(count=st.integers(1, 3))
    def step(self, count):
        """One step of every instance: some tokens for each of its requests."""
        for name in list(self.instances):
            self.step_one(name, count)

    def step_one(self, name, count):
        instance = self.instances[name]
        self.router.on_tokens(packed([instance.step(i, count) for i in list(instance.requests)]))

    @precondition(lambda self: self.instances)
    @rule(random=ONE)
    def fail_step(self, random):
        """A step raises: some requests are lost, the instance lives on."""
        requests = self.instances[random.choice(sorted(self.instances))].requests
        lost = [i for i in requests if random.random() < 0.7]
        losses = [Loss(i, requests[i].attempt) for i in lost]
        for i in lost:
            del requests[i]
        self.router.on_lost(losses, "a step failed")

    @rule(seconds=st.sampled_from([0.1, HOLD_S / 3, HOLD_S + 1]))
    def wait(self, seconds):
        self.world.wait(seconds)
        held_since = self.world.clock.now() - HOLD_S
        assert all(e.held_since > held_since for e in self.router._waiting.everybody())

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
            places += [i for i in self.far() if any(r.id == name for r in i.inbox)]
            held = name in {e.request.id for e in self.router._waiting.everybody()}
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
            assert entry.failures < MAX_ATTEMPTS
        for model in ("m", "other"):
            new = [e for e in self.router._waiting.everybody()
                   if e.attempt == 0 and e.request.model == model]  # fmt: skip
            assert len(new) <= MAX_HELD
        for sink in self.world.sinks.values():
            for error in sink.errors:
                assert isinstance(error, GenerationFailed | Unavailable | Overloaded)
                assert error.retry_after_s is None or 1 <= error.retry_after_s <= 120
                assert not isinstance(error, Overloaded) or not sink.tokens

    @invariant()
    def nobody_serves_another_definition(self):
        for entry in self.router._log.values():
            seat = self.router._fleet.get(entry.instance)
            assert seat is None or seat.serves(entry.request.digest)

    @invariant()
    def the_books_agree(self):
        self.router.check_integrity()

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
        assert not self.router._waiting.everybody()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
