"""A plan is made once for the same question, and anew for any other one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.plan import Holder, Links, Port, Task
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.remembered import Remembered

EVERYTHING = frozenset(range(4))
NAMES = ("a", "b", "far")
LINKS = Links(
    {(name, "net"): Port(1e9, 1e9) for name in NAMES},
    dict.fromkeys(NAMES, 1e8),
    dict.fromkeys(NAMES, 2e9),
    dict.fromkeys(NAMES, "r1"),
)
TASK = Task((100,) * 4, ("b/g0",), (Holder("a/g0", EVERYTHING),))


class Asked:
    """Plans, and knows how often."""

    def __init__(self):
        self.times = 0
        self.plan = Remembered(self.choose)

    def choose(self, task, links, strategy):
        self.times += 1
        return choose(task, links, strategy)


def test_what_is_asked_again_is_answered_as_before():
    asked = Asked()
    first = asked.plan(TASK, LINKS, "")
    assert asked.plan(replace(TASK), replace(LINKS), "") is first
    assert first == choose(TASK, LINKS, "")
    assert asked.times == 1


def test_a_node_that_the_task_does_not_name_makes_no_difference():
    asked = Asked()
    asked.plan(TASK, LINKS, "")
    ports = {**LINKS.ports, ("far", "net"): Port(1e6, 1e6)}
    asked.plan(TASK, replace(LINKS, ports=ports, disks={"a": 1e8, "b": 1e8}), "")
    assert asked.times == 1


OTHERS = {
    "a port": (TASK, replace(LINKS, ports={**LINKS.ports, ("a", "net"): Port(5e8, 1e9)}), ""),
    "a disk": (TASK, replace(LINKS, disks={**LINKS.disks, "b": 2e8}), ""),
    "memory": (TASK, replace(LINKS, hosts={**LINKS.hosts, "b": 3e9}), ""),
    "a rack": (TASK, replace(LINKS, zones={**LINKS.zones, "b": "r2"}), ""),
    "a delay": (TASK, replace(LINKS, hop_s=0.5), ""),
    "a strategy": (TASK, LINKS, "star"),
    "a source": (replace(TASK, holders=(*TASK.holders, Holder("far/g0", EVERYTHING))), LINKS, ""),
    "another one of a kind": (replace(TASK, others=1), LINKS, ""),
}


@pytest.mark.parametrize("question", OTHERS.values(), ids=OTHERS)
def test_any_other_question_is_asked(question):
    asked = Asked()
    asked.plan(TASK, LINKS, "")
    assert asked.plan(*question) == choose(*question)
    assert asked.times == 2


def test_what_cannot_be_planned_is_asked_again():
    asked = Asked()
    for _ in range(2):
        with pytest.raises(PlanError):
            asked.plan(replace(TASK, holders=()), LINKS, "")
    assert asked.times == 2
