"""The present plan of an operation and how it gets on: epochs, edges, who has been told what.

`Execution` keeps the book; `Growth` decides when to plan anew and whom to give up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from blitzgw.core.live import LivePolicy, Pair, StagePlan
from blitzgw.core.operation import POLICY, EdgeFacts, EdgeNews, EdgeOrder, Engage, ReadOrder
from blitzgw.core.plan import Links, Task, node_of
from blitzgw.core.view import ClusterView
from blitzgw.scaling.links import links_of
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.orders import edge_orders, promised, read_orders
from blitzgw.scaling.pairing import Pairing
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.remembered import Remembered
from blitzgw.scaling.sourcing import Sourcing, known_blobs
from blitzgw.scaling.survey import ModelDefinition, members
from blitzgw.scaling.targets import EdgeBook
from blitzgw.scaling.zero import together

if TYPE_CHECKING:
    from blitzgw.scaling.planner.choose import Choice


K_WAY = "binomial"
"""The strategy by which groups of targets begin with different parts of the model."""


class Execution:
    """What is planned, ordered and known of one operation. Epochs count from 1; 0: none yet."""

    def __init__(
        self,
        operation: str,
        definition: ModelDefinition,
        around: Surroundings,
        *,
        strategy: str,
        copy: bool,
        policy: str = "",
    ) -> None:
        self._operation, self._definition, self._around = operation, definition, around
        self._strategy, self._copy = strategy, copy
        self._seed = int.from_bytes(around.secret()[:8], "little")
        self._plan = Remembered(around.choose)
        self.sourcing = Sourcing(definition)
        self.pairing = Pairing(definition, policy)
        self.choice: Choice | None = None
        self.epoch = 0
        self.edges: dict[str, EdgeBook] = {}
        self.reads: tuple[ReadOrder, ...] = ()
        self.borrows = False
        """Whether a source of the present plan waits for what another operation brings it."""
        self.engaged: dict[str, bool] = {}
        """Processes that take part in the present plan, and whether they have said so."""
        self._orders: dict[str, Engage] = {}

    # Planning.

    def sourced(
        self,
        lacking: Collection[str],
        held: Mapping[str, frozenset[int]],
        given_up: Collection[str],
    ) -> bool:
        """Whether every blob is known to be somewhere: without that there is no plan at all."""
        task, _ = self._problem(lacking, held, given_up)
        return len(known_blobs(task.holders)) == len(task.blob_bytes)

    def choose(
        self,
        lacking: Collection[str],
        held: Mapping[str, frozenset[int]],
        given_up: Collection[str],
    ) -> Choice:
        """Choose a plan from what is known now. Raises PlanError and ValueError."""
        task, links = self._problem(lacking, held, given_up)
        self.choice = self._paired(self._choose(task, links, held), links, held)
        return self.choice

    def order(
        self,
        lacking: Collection[str],
        held: Mapping[str, frozenset[int]],
        given_up: Collection[str],
        boots: Mapping[str, str],
    ) -> list[tuple[str, Engage]]:
        """Begin the next epoch: plan, and return what each process that takes part is to be told.

        Those that took part until now and do not any more are told to let go. `boots` are the
        processes of targets by the name of their node, which prevail over the view. Raises
        PlanError, ValueError and Unreachable: the former plan stands then.
        """
        self.epoch += 1
        task, links = self._problem(lacking, held, given_up)
        choice = self._paired(self._choose(task, links, held), links, held)
        self._plan.forget()
        orders = edge_orders(
            choice.plan,
            links,
            self._around.view(),
            name=f"{self._operation}.{self.epoch}",
            secret=self._around.secret,
            unpromised=self.sourcing.unpromised,
            former=self.open_orders(),
            held=held,
        )
        awaited = {holder.worker for holder in task.holders if holder.awaits}
        self.borrows = any(edge.source in awaited for edge in choice.plan.edges)
        self.pairing.settle()
        self.sourcing.planned(choice.plan)
        sizes, former = self._definition.blob_bytes, self.edges
        self.choice, self.reads, self.edges = choice, read_orders(choice.plan), {}
        for order in orders:
            left = sum(sizes[i] for i in order.blobs if i not in held.get(order.target, ()))
            self.edges[order.id] = former.get(order.id) or EdgeBook(order, left)
        return self._tell(self._around.view(), boots)

    def _problem(
        self,
        lacking: Collection[str],
        held: Mapping[str, frozenset[int]],
        given_up: Collection[str],
    ) -> tuple[Task, Links]:
        view = self._around.view()
        own, due_s = promised(self.open_orders()), self._around.due_s()
        also = {*(node for node, _ in own), *map(node_of, due_s)}
        task = self.sourcing.task(view, lacking, held, given_up, also, due_s)
        return task, links_of(view, own, self._around.promised())

    def _choose(self, task: Task, links: Links, targets: Collection[str]) -> Choice:
        """Keep to the strategy that was asked for while it applies to what is left.

        The model's own is a wish that whoever cannot follow leaves alone.
        """
        usual = "" if self._copy or self._strategy else self._usual()
        piped = None if usual else self._choose_pipelines(task, links, targets)
        if piped is not None:
            return piped
        try:
            return self._plan(task, links, self._strategy or usual)
        except PlanError:
            if not usual and (self.epoch <= 1 or not self._strategy):
                raise
            return self._plan(task, links, "")

    def _usual(self) -> str:
        """Return the strategy of the model's configuration, empty where that leaves it open."""
        definition = self._definition
        facts = self._around.view().oldest_definition(definition.name, definition.digest)
        return "" if facts is None or facts.strategy == "auto" else facts.strategy

    def _choose_pipelines(
        self, task: Task, links: Links, targets: Collection[str]
    ) -> Choice | None:
        """Return a plan by which targets have the model together early, where that is wanted."""
        pairing, view = self.pairing, self._around.view()
        if self._copy or self._strategy or not pairing.wants_pipelines(view, targets):
            return None
        if pairing.from_zero(view, targets):
            ready_s = partial(pairing.ready_s, targets=targets)
            return together(self._plan, task, links, ready_s)
        try:
            choice = self._plan(task, links, K_WAY)
        except PlanError:
            return None
        return choice if pairing.ready_s(choice, targets) is not None else None

    def _paired(self, choice: Choice, links: Links, targets: Collection[str]) -> Choice:
        """Say whom the targets help meanwhile; a host copy helps nobody."""
        if self._copy:
            return choice
        view = self._around.view()
        plan = self.pairing.pair(choice.plan, choice.prediction, links, view, targets)
        means = {POLICY + name: s for name, s in self.pairing.decision.means.items()}
        return replace(choice, plan=plan, alternatives={**choice.alternatives, **means})

    def _tell(self, view: ClusterView, boots: Mapping[str, str]) -> list[tuple[str, Engage]]:
        """Return the orders of this epoch; `boots` prevail over the view (`order`)."""
        edges = [book.order for book in self.edges.values()]
        parts = {node_of(worker) for edge in edges for worker in (edge.source, edge.target)}
        parts |= {node_of(read.worker) for read in self.reads}
        policy, pairs, pipelines = self.help()
        parts |= {node_of(pair.worker) for pair in pairs}
        parts |= {node_of(stage.worker) for stages in pipelines for stage in stages}
        names = _names(parts | _called(self.engaged, view), view, boots)
        taking_part = {boot for boot, name in names.items() if name in parts}
        told = sorted(taking_part | set(self.engaged))
        self._orders = {
            boot: Engage(
                operation=self._operation,
                epoch=self.epoch,
                model=self._definition.name,
                digest=self._definition.digest,
                weights=self._definition.weights,
                edges=tuple(e for e in edges if _at(e.source, e.target, node=names.get(boot))),
                reads=tuple(r for r in self.reads if _at(r.worker, node=names.get(boot))),
                seed=self._seed,
                copy=self._copy,
                policy=policy,
                pairs=tuple(p for p in pairs if _at(p.worker, node=names.get(boot))),
                pipelines=tuple(
                    stages
                    for stages in pipelines
                    if _at(*(stage.worker for stage in stages), node=names.get(boot))
                ),
            )
            for boot in told
        }
        self.engaged = dict.fromkeys(told, False)
        return list(self._orders.items())

    def help(self) -> tuple[LivePolicy, tuple[Pair, ...], tuple[tuple[StagePlan, ...], ...]]:
        """Return by which policy targets help, whom, and which serve together."""
        if self.choice is None:
            return LivePolicy.STOP, (), ()
        plan = self.choice.plan
        return plan.policy, plan.pairs, plan.pipelines

    def unconfirmed(self, boot: str) -> Engage | None:
        """Return what a process was told in this epoch and has not answered yet."""
        return None if self.engaged.get(boot, True) else self._orders.get(boot)

    def confirm(self, boot: str) -> None:
        """Note that a process does what it was told; one that was told to let go is rid of it."""
        order = self._orders.get(boot)
        if order is not None and (order.edges or order.reads or order.pairs or order.pipelines):
            self.engaged[boot] = True
        else:
            self.engaged.pop(boot, None)

    # Edges.

    def edge_facts(self) -> tuple[EdgeFacts, ...]:
        """Return how the edges get on."""
        return tuple(book.facts() for book in self.edges.values())

    def foreseen_edges(self) -> tuple[EdgeFacts, ...]:
        """Return the edges of a plan that is not carried out."""
        sizes = self._definition.blob_bytes
        return tuple(
            EdgeFacts(e.source, e.target, e.network, len(e.blobs), sum(sizes[i] for i in e.blobs))
            for e in (self.choice.plan.edges if self.choice is not None else ())
        )

    def foreseen_reads(self) -> tuple[ReadOrder, ...]:
        """Return the reads of a plan that is not carried out."""
        return () if self.choice is None else read_orders(self.choice.plan)

    def open_edges(self) -> list[EdgeBook]:
        """Return the edges that are not at their end."""
        return [book for book in self.edges.values() if book.state in ("opening", "flowing")]

    def open_orders(self) -> list[EdgeOrder]:
        """Return the orders of the edges that are not at their end."""
        return [book.order for book in self.open_edges()]

    def take(self, news: EdgeNews, boot_of_target: str, boot: str, now: float) -> bool:
        """Note news of an edge from the process `boot`; return whether they are the first bytes."""
        book = self.edges[news.edge]
        if book.state in ("done", "lost"):
            if not news.reason:
                book.take(news, now, received=False)  # the other end tells what it has cost
            return False
        return book.take(news, now, received=boot == boot_of_target)

    def lose_worker(self, worker: str) -> list[EdgeBook]:
        """Give up the edges of a worker; return them."""
        return self._lose([b for b in self.open_edges() if worker in _ends(b)])

    def lose_node(self, boot: str, node: str) -> list[EdgeBook]:
        """Give up the edges of a process that takes part no more; return them."""
        self.engaged.pop(boot, None)
        self._orders.pop(boot, None)
        return self._lose([b for b in self.open_edges() if node in map(node_of, _ends(b))])

    def _lose(self, books: list[EdgeBook]) -> list[EdgeBook]:
        for book in books:
            book.state = "lost"
        return books


def _ends(book: EdgeBook) -> tuple[str, str]:
    return book.order.source, book.order.target


def _at(*workers: str, node: str | None) -> bool:
    return any(node_of(worker) == node for worker in workers)


def _called(boots: Iterable[str], view: ClusterView) -> set[str]:
    """Return the names of those of these processes that are in the view."""
    return {view.nodes[boot].name for boot in boots if boot in view.nodes}


def _names(nodes: Iterable[str], view: ClusterView, boots: Mapping[str, str]) -> dict[str, str]:
    """Return these nodes' names by process; of two with a name, `boots` says which is meant."""
    there = members(view)
    found = {name: there[name].boot for name in nodes if name in there} | dict(boots)
    return {boot: name for name, boot in found.items()}
