"""A device tells when the pipeline that an instance leads is there, and when it is over."""

from __future__ import annotations

from typing import Any

from blitzgw.core.live import Purpose, StageReady
from blitzgw.core.request import Stage
from blitzgw.core.span import Span
from blitzgw.reporting import device_facts
from blitzgw.scheduler.events import PairingClosed, PairingOpened
from tests.node.test_node_pairings import LAYERS
from tests.node.test_node_stages import Rig

END = "m@c/gpu"


class Led(Rig):
    """A device whose scheduler is a real one, with an instance that leads."""

    def __init__(self) -> None:
        super().__init__()
        scheduler: Any = self.runner._scheduler
        del scheduler.tell
        self.runner.stage(self.name, Span(0, 2))

    @property
    def is_open(self) -> bool:
        (facts,) = (f for f in device_facts([self.runner], {}) if getattr(f, "id", "") == self.name)
        return bool(getattr(facts, "open", False))

    def resident(self) -> None:
        for index in range(3):
            self.runner.blob_resident(self.name, index)

    def join(self, pairing: str = "road-1") -> None:
        opened = PairingOpened(pairing, Purpose.STAGE, self.name, END, guest=True)
        self.runner.live(opened)

    def ready(self, pairing: str = "road-1") -> None:
        self.runner.live(StageReady(pairing, (Stage(END, Span(2, LAYERS)),)))


def test_a_lead_is_open_once_all_stages_are_there() -> None:
    rig = Led()
    assert [told for told, _ in rig.listener.ports] == [f"leads {rig.name} 0 digest"]
    rig.join()
    rig.resident()
    assert not rig.is_open, "the last stage has not got its layers yet"
    rig.ready()
    assert rig.is_open
    (first, port), (again, same) = rig.listener.ports
    assert first == again
    assert port is same
    assert (port.outlook().open, port.outlook().reluctant) == (True, True)
    rig.ready()
    assert len(rig.listener.ports) == 2, "told once"


def test_whoever_is_last_to_be_there_opens_it() -> None:
    rig = Led()
    rig.join()
    rig.ready()
    assert not rig.is_open
    rig.resident()
    assert rig.is_open
    assert len(rig.listener.ports) == 2


def test_a_lead_whose_pipeline_breaks_is_open_no_more_and_may_be_again() -> None:
    rig = Led()
    rig.join()
    rig.resident()
    rig.ready()
    rig.runner.live(PairingClosed("road-1", "the peer has died"))
    assert not rig.is_open
    rig.join("road-2")
    assert not rig.is_open
    rig.ready("road-2")
    assert rig.is_open
    rig.runner.stage(rig.name, None)
    assert not rig.is_open


def test_a_lead_that_is_complete_or_lost_leads_no_more() -> None:
    for end in (
        lambda rig: rig.runner.instance_ready(rig.name, 1.0),
        lambda rig: rig.runner.worker_lost("killed"),
        lambda rig: rig.runner.instance_failed(rig.name, "no memory"),
    ):
        rig = Led()
        rig.join()
        rig.resident()
        rig.ready()
        assert rig.is_open
        end(rig)
        assert not rig.is_open
