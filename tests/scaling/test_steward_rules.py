"""A node's answers: one device, one operation, one owner; whatever was begun ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import InstanceState
from blitzgw.core.live import LivePolicy, Pair
from blitzgw.core.operation import (
    Abandon,
    BlobNews,
    Claim,
    Claimed,
    Conclude,
    EdgeNews,
    EdgeOrder,
    Engage,
    Engaged,
    ReadOrder,
    Renew,
    Retire,
    Retired,
    TargetFailed,
    TargetReady,
)
from blitzgw.core.plan import Tier
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CloseEdge,
    CopyFailed,
    CopyHeld,
    EdgeClosed,
    EdgeProgress,
    OpenReceive,
    OpenSend,
)
from blitzgw.scaling.duties import PairInstance, UnpairInstance
from blitzgw.scaling.effects import (
    BringUp,
    DropInstance,
    DropWeights,
    HoldWeights,
    KeepInstance,
    PublishNetworks,
    ReadWeights,
    RetireInstance,
    ReviveInstance,
    Send,
    ToWorker,
)
from blitzgw.scaling.events import (
    UNKNOWN_EPOCH,
    InstanceDrained,
    InstanceEnded,
    InstanceServes,
    LinkLost,
    MessageCame,
    NodeDied,
    TimePassed,
    WorkerLost,
    WorkerSaid,
)
from blitzgw.scaling.keeping import MAX_KEEP_S
from blitzgw.scaling.steward import MAX_LEASE_S, Steward

W = "w" * 64


class House:
    """Premises whose facts follow the effects."""

    def __init__(self):
        self.claims = {"g0": 4, "g1": 7}
        self.instances = {}
        self.stores = set()
        self.idle = {}
        """What drains or is kept, by device: its state."""
        self.keep = 0.0

    def claim(self, device):
        return self.claims.get(device)

    def objection(self, device, model, digest):
        free = device not in self.instances or self.idle.get(device) is InstanceState.KEPT
        return "" if free else "occupied"

    def revivable(self, device, model, digest):
        same = (model, digest) == ("m", "d") and device in self.idle
        return self.instances[device] if same else ""

    def keep_s(self, instance):
        return self.keep

    def device_of(self, instance):
        return next((d for d, i in self.instances.items() if i == instance), None)

    def has_weights(self, device, weights):
        return device in self.instances or (device, weights) in self.stores

    def rates(self):
        return {"net": 100.0}

    def perform(self, effects):
        for effect in effects:
            match effect:
                case BringUp():
                    assert effect.device not in self.instances
                    self.claims[effect.device] = effect.claim
                    self.instances[effect.device] = effect.instance
                case DropInstance():
                    self.instances.pop(effect.device, None)
                    self.idle.pop(effect.device, None)
                    self.claims[effect.device] += 1
                case RetireInstance():
                    assert self.instances[effect.device] == effect.instance
                    assert effect.device not in self.idle
                    self.idle[effect.device] = InstanceState.DRAINING
                case KeepInstance():
                    assert self.idle[effect.device] is InstanceState.DRAINING
                    self.idle[effect.device] = InstanceState.KEPT
                    self.claims[effect.device] += 1
                case ReviveInstance():
                    assert self.instances[effect.device] == effect.instance
                    del self.idle[effect.device]
                    self.claims[effect.device] = effect.claim
                case HoldWeights():
                    self.stores.add((effect.device, effect.weights))
                case DropWeights():
                    self.stores.discard((effect.device, effect.weights))


class Rig:
    def __init__(self):
        self.house, self.now = House(), 0.0
        self.steward = Steward("n", "me", self.house)

    def leased(self, device):
        return any(device in held.leases for held in self.steward._engaged.values())

    def tell(self, event, now=None):
        self.now = self.now if now is None else now
        effects = self.steward.handle(event, self.now)
        self.house.perform(effects)
        self.steward.check_integrity()
        return effects

    def say(self, message, boot="owner", now=None):
        return self.tell(MessageCame(boot, message), now)

    def claim(self, device="g0", claim=4, operation="op", boot="owner"):
        return self.say(Claim(operation, device, claim, "m", "d"), boot)

    def brought_up(self):
        self.claim()
        return self.say(engage(1, edge("e1", "p/x", "n/g0")))


def edge(name, source, target, rate=10.0, blobs=(0, 1)):
    return EdgeOrder(name, source, target, "net", "h", 1, blobs, b"k" * 32, rate)


def engage(epoch, *edges, operation="op", reads=(), copy=False, **live):
    return Engage(operation, epoch, "m", "d", W, edges, reads, seed=5, copy=copy, **live)


def helping(epoch, *homes, policy=LivePolicy.ZIGZAG):
    """Let g0 help each of these, if any, and a worker of another node somebody else."""
    pairs = (Pair("p/x", "m@q/z"), *(Pair("n/g0", home) for home in homes))
    return engage(epoch, edge("e1", "p/x", "n/g0"), policy=policy, pairs=pairs)


def paired(effects):
    return [e for e in effects if isinstance(e, PairInstance | UnpairInstance)]


def sent(effects):
    return [effect.message for effect in effects if isinstance(effect, Send)]


def test_a_claim_is_a_compare_and_set():
    rig = Rig()
    begin, answer = rig.claim()
    assert begin == BringUp("g0", "m@n/g0", 5, "m", "d", "op")
    assert answer == Send("owner", Claimed("op", "g0", 5, "m@n/g0"))
    (refusal,) = sent(rig.claim(operation="other", boot="rival"))
    assert refusal.reason
    assert refusal.claim == 5
    (refusal,) = sent(rig.claim(operation="other", boot="rival", claim=5))
    assert "another operation" in refusal.reason
    assert sent(rig.claim()) == [Claimed("op", "g0", 5, "m@n/g0")]  # asked again after a lost link
    assert sent(rig.claim(device="g9"))[0].reason == "n/g9 is not up"


def test_only_the_owner_is_heard():
    rig = Rig()
    rig.brought_up()
    for message in (Abandon("op", "x"), Conclude("op"), engage(2), Renew("op")):
        assert rig.say(message, "rival") == []
    assert rig.leased("g0")


@pytest.mark.parametrize("lease_s", [float("nan"), float("inf"), 1e300, -5.0, 0.0])
def test_no_lease_is_for_ever_or_over_before_it_began(lease_s):
    rig = Rig()
    rig.say(Claim("op", "g0", 4, "m", "d", lease_s))
    assert 0 < rig.steward.deadline() <= MAX_LEASE_S
    rig.say(replace(engage(1), lease_s=lease_s))
    assert 0 < rig.steward.deadline() <= MAX_LEASE_S
    rig.say(Renew("op"))
    assert 0 < rig.steward.deadline() <= MAX_LEASE_S
    rig.tell(TimePassed(), MAX_LEASE_S + 1)
    assert not rig.leased("g0")


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_a_rate_that_is_none_reserves_nothing(rate):
    rig = Rig()
    rig.house.stores.add(("g1", W))
    rig.say(engage(1, edge("a", "n/g1", "p/x", rate)))
    assert rig.steward.reserved() == {}


def test_epochs_replace_each_other_and_old_ones_are_dropped():
    rig = Rig()
    effects = rig.brought_up()
    (opened,) = [e for e in effects if isinstance(e, ToWorker)]
    assert isinstance(opened.message, OpenReceive)
    assert opened.message.edge.seed == 5
    effects = rig.say(engage(3, edge("e1", "p/x", "n/g0"), edge("e2", "n/g0", "q/x")))
    assert [type(e.message) for e in effects if isinstance(e, ToWorker)] == [OpenSend]
    assert rig.say(engage(2)) == []
    assert sent(rig.say(engage(3)))[-1] == Engaged("op", 3)
    effects = rig.say(engage(4))
    assert {e.message.edge for e in effects if isinstance(e, ToWorker)} == {"e1", "e2"}
    assert all(isinstance(e.message, CloseEdge) for e in effects if isinstance(e, ToWorker))
    assert rig.steward.reserved() == {}
    assert rig.leased("g0")


def test_ports_are_not_promised_beyond_their_rate():
    rig = Rig()
    rig.house.stores.add(("g1", W))
    rig.say(engage(1, edge("a", "n/g1", "p/x", 60.0)))
    assert rig.steward.reserved() == {"net": (60.0, 0.0)}
    refused = rig.say(engage(1, edge("b", "n/g1", "p/y", 60.0), operation="o2"), "rival")
    assert sent(refused) == [Engaged("o2", 1, "taken: net")]
    ok = rig.say(engage(2, edge("b", "n/g1", "p/y", 0.0), operation="o2"), "rival")
    assert sent(ok) == [Engaged("o2", 2)]
    assert PublishNetworks() not in ok
    same = rig.say(engage(2, edge("c", "n/g1", "p/z", 100.0)))  # in place of its own
    assert sent(same) == [Engaged("op", 2)]
    assert PublishNetworks() in same
    rig.say(Conclude("op"))
    assert rig.steward.reserved() == {}


def test_what_is_not_there_is_not_promised():
    rig = Rig()
    assert sent(rig.say(engage(1, edge("a", "n/g1", "p/x")))) == [Engaged("op", 1, "gone: n/g1")]
    assert sent(rig.say(engage(1, edge("a", "p/x", "n/g1")))) == [Engaged("op", 1, "gone: n/g1")]
    assert rig.steward.statistics().operations == 0


def test_news_go_to_the_owner_and_not_too_often():
    rig = Rig()
    rig.brought_up()
    said = lambda message, now: sent(rig.tell(WorkerSaid("g0", message), now))  # noqa: E731
    assert said(EdgeProgress("e1", 10), 0.0) == [EdgeNews("op", 1, "e1", 10)]
    assert said(EdgeProgress("e1", 20), 0.1) == []
    assert said(EdgeProgress("e1", 30, 1, 2), 0.21) == [
        EdgeNews("op", 1, "e1", 30, resumed=1, damaged=2)
    ]
    assert said(BlobChecked(W, 0), 0.3) == [BlobNews("op", "n/g0", (0,))]
    assert said(BlobChecked(W, 0), 0.3) == []
    assert said(BlobChecked("other", 1), 0.3) == []
    (news,) = said(EdgeClosed("e1", "", 99, 0.5, 0.1, 0.2), 0.4)
    assert (news.ended, news.reason, news.received_bytes) == (True, "", 99)
    assert (news.yielded_s, news.delayed_s) == (0.1, 0.2)
    assert said(EdgeProgress("e1", 200), 1.0) == []
    assert sent(rig.tell(InstanceServes("g0", "m@n/g0"))) == [TargetReady("op", "n/g0")]
    rig.tell(LinkLost("owner"))
    again = sent(rig.say(Renew("op")))
    assert TargetReady("op", "n/g0") in again
    assert BlobNews("op", "n/g0", (0,)) in again
    assert news in again
    assert sent(rig.say(Renew("op"))) == []


def test_blobs_that_were_there_before_the_weights_had_a_name_are_told():
    rig = Rig()
    rig.claim()
    assert rig.tell(WorkerSaid("g0", BlobChecked(W, 1))) == []
    assert BlobNews("op", "n/g0", (1,)) in sent(rig.say(engage(1)))


def test_a_damaged_blob_ends_its_edge():
    rig = Rig()
    rig.brought_up()
    effects = rig.tell(WorkerSaid("g0", BlobDamaged(W, 1, "e1")))
    assert ToWorker("g0", CloseEdge("e1")) in effects
    (news,) = sent(effects)
    assert (news.ended, news.reason) == (True, "blob 1 was damaged")
    again = rig.say(engage(2, edge("e1", "p/x", "n/g0")))  # its key has served
    assert not [e for e in again if isinstance(e, ToWorker)]


def test_a_damaged_checkpoint_is_told_as_a_read():
    rig = Rig()
    rig.claim()
    read = ReadOrder("n/g0", Tier.DISK, (0, 1))
    assert ReadWeights("g0", "m", "d", W, (0, 1)) in rig.say(engage(1, reads=(read,)))
    assert not [e for e in rig.say(engage(2, reads=(read,))) if isinstance(e, ReadWeights)]
    (news,) = sent(rig.tell(WorkerSaid("g0", BlobDamaged(W, 1))))
    assert (news.edge, news.ended) == ("read n/g0", True)


def test_a_lost_worker_fails_its_target_and_its_edges():
    rig = Rig()
    rig.brought_up()
    effects = rig.tell(WorkerLost("g0", "killed"))
    messages = sent(effects)
    assert TargetFailed("op", "n/g0", "killed") in messages
    assert any(isinstance(m, EdgeNews) and m.ended for m in messages)
    assert any(isinstance(e, DropInstance) for e in effects)
    assert not rig.leased("g0")


@pytest.mark.parametrize("how", ["silence", "death"])
def test_without_its_owner_an_operation_undoes_itself(how):
    rig = Rig()
    rig.brought_up()
    rig.say(Renew("op"), now=3.0)
    assert rig.steward.deadline() == 8.0
    assert rig.tell(TimePassed(), 7.9) == []
    event = TimePassed() if how == "silence" else NodeDied("owner")
    effects = rig.tell(event, 8.0)
    assert any(isinstance(e, DropInstance) for e in effects)
    assert rig.steward.statistics().operations == 0
    (answer,) = sent(rig.say(Renew("op")))
    assert answer.epoch == UNKNOWN_EPOCH
    assert rig.house.claims["g0"] == 6


def test_what_is_ready_stays_without_its_owner_and_drains_when_abandoned():
    for message, kinds in (
        (None, []),
        (Conclude("op"), []),
        (Abandon("op", "x"), [RetireInstance]),
    ):
        rig = Rig()
        rig.brought_up()
        rig.tell(InstanceServes("g0", "m@n/g0"))
        effects = rig.say(message) if message else rig.tell(NodeDied("owner"))
        told = [type(e) for e in effects if isinstance(e, RetireInstance | DropInstance)]
        assert told == kinds
        assert not rig.leased("g0")


def test_a_target_helps_whom_it_is_told_to_until_it_is_complete():
    rig = Rig()
    rig.claim()
    rig.claim("g1", 7)
    first = PairInstance("g0", "m@n/g0", "m@p/x", LivePolicy.ZIGZAG)
    assert paired(rig.say(helping(1, "m@p/x"))) == [first]
    assert paired(rig.say(helping(1, "m@p/x"))) == [], "the same order"
    assert paired(rig.say(helping(2, "m@p/x"))) == [], "the same pair in a new plan"
    assert paired(rig.say(helping(3, "m@p/y"))) == [replace(first, home="m@p/y")]
    best = PairInstance("g0", "m@n/g0", "m@p/y", LivePolicy.BEST_EFFORT)
    assert paired(rig.say(helping(4, "m@p/y", policy=LivePolicy.BEST_EFFORT))) == [best]
    assert paired(rig.say(helping(5))) == [UnpairInstance("g0", "m@n/g0")]
    assert paired(rig.say(helping(6, "m@p/x"))) == [first]
    rig.tell(InstanceServes("g0", "m@n/g0"))
    assert paired(rig.say(helping(7, "m@p/y"))) == paired(rig.say(helping(8))) == []
    assert paired(rig.say(Conclude("op"))) == []


def test_a_policy_can_change_and_an_order_that_lets_go_ends_it():
    rig = Rig()
    rig.claim()
    for epoch, policy in ((1, LivePolicy.STOP), (2, LivePolicy.ZIGZAG)):
        (pair,) = paired(rig.say(helping(epoch, "m@p/x", policy=policy)))
        assert pair == PairInstance("g0", "m@n/g0", "m@p/x", policy)
    gone = UnpairInstance("g0", "m@n/g0")
    assert paired(rig.say(engage(3))) == [gone]
    rig.say(helping(4, "m@p/x"))
    assert paired(rig.say(engage(5))) == [gone]
    rig.say(helping(6, "m@p/x"))
    effects = rig.say(Abandon("op", "given up"))
    assert [type(e) for e in effects if not isinstance(e, ToWorker | PublishNetworks)] == [
        DropInstance
    ]


def test_who_has_no_lease_helps_nobody():
    rig = Rig()
    assert paired(rig.say(helping(1, "m@p/x"))) == []


def kept(rig, keep_s=10.0):
    """A rig with an instance that is kept on g0, at claim 6."""
    rig.house.keep = keep_s
    rig.brought_up()
    rig.tell(InstanceServes("g0", "m@n/g0"))
    rig.say(Conclude("op"))
    rig.say(Retire("down", "m@n/g0", 5), "else")
    return rig.tell(InstanceDrained("g0", "m@n/g0"))


def test_one_that_has_drained_is_kept_and_its_device_is_free():
    rig = Rig()
    effects = kept(rig)
    assert effects == [
        KeepInstance("g0", "m@n/g0", "it has drained"),
        Send("else", Retired("down", "m@n/g0")),
    ]
    figures = rig.steward.statistics()
    assert (figures.kept, figures.retiring) == (1, 0)
    assert rig.steward.deadline() == 10.0
    assert rig.tell(InstanceDrained("g0", "m@n/g0")) == [], "it drains no more"
    again = rig.say(Retire("again", "m@n/g0", 6), "else")
    assert again == [Send("else", Retired("again", "m@n/g0"))], "what is kept has gone already"
    assert rig.tell(TimePassed(), 9.0) == []
    (drop,) = rig.tell(TimePassed(), 10.0)
    assert drop == DropInstance("g0", "m@n/g0", "it was kept for long enough", planned=True)
    assert rig.steward.deadline() is None


def test_nothing_is_kept_where_the_terms_say_so():
    effects = kept(Rig(), keep_s=0.0)
    assert effects[0] == DropInstance("g0", "m@n/g0", "retired", planned=True)
    assert effects[1] == Send("else", Retired("down", "m@n/g0"))
    for nonsense in (float("nan"), -1.0):
        assert isinstance(kept(Rig(), keep_s=nonsense)[0], DropInstance)
    rig = Rig()
    kept(rig, keep_s=float("inf"))
    assert rig.steward.deadline() == MAX_KEEP_S


def test_a_claim_for_the_same_revives_and_for_another_makes_room():
    rig = Rig()
    kept(rig)
    effects = rig.claim(claim=6, operation="up")
    granted = Claimed("up", "g0", 7, "m@n/g0", revived=True)
    assert effects == [Send("owner", granted), ReviveInstance("g0", "m@n/g0", 7, "up")]
    assert rig.claim(claim=6, operation="up") == [Send("owner", granted)], "said again"
    told = rig.tell(InstanceServes("g0", "m@n/g0"))
    assert told == [Send("owner", TargetReady("up", "n/g0"))]
    assert rig.say(Conclude("up")) == []
    assert rig.steward.deadline() is None
    rig = Rig()
    kept(rig)
    drop, begin, answer = rig.say(Claim("up", "g0", 6, "o", "other"))
    assert drop == DropInstance("g0", "m@n/g0", "its device is claimed for o", planned=True)
    assert (begin.instance, begin.claim) == ("o@n/g0", 8)
    assert answer == Send("owner", Claimed("up", "g0", 8, "o@n/g0"))
    assert rig.steward.statistics().kept == 0


def test_one_that_drains_goes_on_at_the_claim_of_its_requests():
    rig = Rig()
    rig.house.keep = 10.0
    rig.brought_up()
    rig.tell(InstanceServes("g0", "m@n/g0"))
    rig.say(Conclude("op"))
    rig.say(Retire("down", "m@n/g0", 5), "else")
    told, answer, revive = rig.claim(claim=5, operation="up")
    assert told == Send("else", Retired("down", "m@n/g0", "revived by operation up"))
    assert answer == Send("owner", Claimed("up", "g0", 5, "m@n/g0", revived=True))
    assert revive == ReviveInstance("g0", "m@n/g0", 5, "up")
    assert rig.tell(InstanceDrained("g0", "m@n/g0")) == [], "its drain has been given up"
    rig.tell(InstanceServes("g0", "m@n/g0"))
    (retire,) = rig.say(Abandon("up", "why"))
    assert retire == RetireInstance("g0", "m@n/g0", "why"), "as it was before"


def test_what_is_being_sent_from_a_kept_instance_is_waited_for():
    rig = Rig()
    kept(rig)
    rig.say(engage(1, edge("e1", "n/g0", "p/x"), operation="else"), "other", 9.0)
    rig.say(Renew("else"), "other", 10.0)
    assert rig.tell(TimePassed(), 10.0) == []
    assert rig.steward.deadline() == 11.0
    rig.say(Conclude("else"), "other", 10.5)
    assert rig.tell(TimePassed(), 11.0)[0].planned


@pytest.mark.parametrize("event", [WorkerLost("g0", "killed"), InstanceEnded("g0", "m@n/g0")])
def test_what_is_kept_is_forgotten_with_its_worker(event):
    rig = Rig()
    kept(rig)
    assert rig.tell(event) == []
    assert rig.steward.statistics().kept == 0
    assert rig.steward.deadline() is None


def test_retiring_waits_for_the_end_and_minds_the_claim():
    rig = Rig()
    rig.house.instances["g1"] = "m@n/g1"
    assert sent(rig.say(Retire("op", "m@n/g1", 6)))[0].reason
    assert rig.say(Retire("op", "m@n/g1", 7)) == [RetireInstance("g1", "m@n/g1", "retired")]
    assert rig.say(Retire("op", "m@n/g1", 7)) == []
    assert sent(rig.tell(InstanceEnded("g1", "m@n/g1"))) == [Retired("op", "m@n/g1")]
    assert sent(rig.say(Retire("op", "nobody", 1)))[0].reason


def test_a_target_that_is_given_back_is_free_at_once():
    rig = Rig()
    rig.claim()
    effects = rig.say(Retire("op", "m@n/g0", 5))
    assert any(isinstance(e, DropInstance) for e in effects)
    assert sent(effects) == [Retired("op", "m@n/g0")]
    assert not rig.leased("g0")


def test_a_checkpoint_is_read_into_a_store_that_goes_with_the_operation():
    rig = Rig()
    read = ReadOrder("n/g1", Tier.DISK, (0, 1))
    effects = rig.say(engage(1, edge("a", "n/g1", "p/x"), reads=(read,)))
    assert HoldWeights("g1", "m", "d", W, (0, 1)) in effects
    assert rig.steward.uses("g1", W)
    assert rig.say(engage(1, edge("b", "n/g1", "q/x"), operation="o2"), "rival")
    assert DropWeights("g1", W) not in rig.say(Conclude("op"))  # somebody else sends from it
    assert DropWeights("g1", W) in rig.say(Conclude("o2"), "rival")
    assert not rig.steward.uses("g1", W)


def test_a_host_copy_stays_when_it_is_held_and_goes_when_it_is_not():
    for held, message, stays in (
        (True, Conclude("op"), True),
        (True, Abandon("op", "x"), False),
        (False, Conclude("op"), False),
    ):
        rig = Rig()
        effects = rig.say(engage(1, edge("a", "p/x", "n/g0"), copy=True), "me")
        assert HoldWeights("g0", "m", "d", W, ()) in effects
        if held:
            ready = sent(rig.tell(WorkerSaid("g0", CopyHeld(W, 9))))
            assert ready == [TargetReady("op", "n/g0")]
        assert (DropWeights("g0", W) not in rig.say(message, "me")) == stays


def test_a_host_copy_that_fails_is_told():
    rig = Rig()
    rig.say(engage(1, edge("a", "p/x", "n/g0"), copy=True), "me")
    messages = sent(rig.tell(WorkerSaid("g0", CopyFailed(W, "full"))))
    assert TargetFailed("op", "n/g0", "full") in messages


MESSAGES = st.one_of(
    st.builds(
        Claim, st.sampled_from(["a", "b"]), st.sampled_from(["g0", "g1"]), st.integers(4, 9),
        st.just("m"), st.just("d"),
    ),
    st.builds(
        lambda operation, epoch, pairs, reads, copy: engage(
            epoch,
            *(edge(f"{operation}{epoch}{i}", s, t, 40.0) for i, (s, t) in enumerate(pairs)),
            operation=operation,
            reads=tuple(ReadOrder(w, Tier.DISK, (0, 1)) for w in reads),
            copy=copy,
        ),
        st.sampled_from(["a", "b"]),
        st.integers(1, 5),
        st.lists(
            st.sampled_from([("p/x", "n/g0"), ("n/g0", "n/g1"), ("n/g1", "p/x"), ("q/x", "n/g1")]),
            max_size=3,
        ),
        st.lists(st.sampled_from(["n/g0", "n/g1"]), max_size=1),
        st.booleans(),
    ),
    st.builds(Renew, st.sampled_from(["a", "b"])),
    st.builds(Conclude, st.sampled_from(["a", "b"])),
    st.builds(Abandon, st.sampled_from(["a", "b"]), st.just("why")),
    st.builds(
        Retire, st.sampled_from(["a", "b"]), st.sampled_from(["m@n/g0", "m@n/g1"]),
        st.integers(4, 9),
    ),
)  # fmt: skip
EVENTS = st.one_of(
    st.builds(MessageCame, st.sampled_from(["owner", "me"]), MESSAGES),
    st.builds(WorkerLost, st.sampled_from(["g0", "g1"]), st.just("killed")),
    st.builds(LinkLost, st.just("owner")),
    st.builds(NodeDied, st.just("owner")),
    st.sampled_from([InstanceServes("g0", "m@n/g0"), InstanceServes("g1", "m@n/g1")]),
    st.builds(WorkerSaid, st.just("g0"), st.builds(BlobChecked, st.just(W), st.integers(0, 2))),
    st.builds(WorkerSaid, st.just("g0"), st.just(CopyHeld(W, 1))),
    st.builds(WorkerSaid, st.just("g1"), st.just(BlobDamaged(W, 0))),
    st.builds(TimePassed),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(EVENTS, st.floats(0, 3)), max_size=30),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.booleans(),
)
def test_in_any_order_the_books_hold_and_silence_ends_all(events, keep_s, at_once):
    rig, now = Rig(), 0.0
    rig.house.keep, waiting = keep_s, []
    for event, pause in events:
        now += pause
        effects = rig.tell(event, now)
        drained = [effect for effect in effects if isinstance(effect, RetireInstance)]
        for effect in drained:
            if rig.house.keep == 0.0 or at_once:
                rig.tell(InstanceDrained(effect.device, effect.instance))
        waiting += [] if rig.house.keep == 0.0 or at_once else drained
        if isinstance(event, WorkerLost):
            rig.house.instances.pop(event.device, None)
            rig.house.idle.pop(event.device, None)
    for effect in waiting:
        if rig.house.instances.get(effect.device) == effect.instance:
            rig.tell(InstanceDrained(effect.device, effect.instance))
    rig.tell(TimePassed(), now + 100.0)
    rig.tell(TimePassed(), now + 200.0)
    assert rig.steward.statistics().kept == 0
    figures = rig.steward.statistics()
    assert figures.operations == figures.leases == figures.edges == figures.retiring == 0
    assert rig.steward.reserved() == {}
    assert rig.steward.deadline() is None
