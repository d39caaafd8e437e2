"""The instances that a router knows, by id and by model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from blitzgw.core.ports import InstancePort


@dataclass(slots=True, eq=False)
class Seat:
    """An instance from its coming to its going.

    `serial` is never used again: an instance that comes back under its old id has lost what was
    cached there. `digest` names the definition of the model that it serves; empty: not known. It
    is `local` where it is this node's: then its end is a worker's, not that of a way to it. Until
    `cooling_until` it is asked after all others, because it has declined. `place` is the fleet's.
    """

    port: InstancePort
    serial: int
    digest: str = ""
    local: bool = False
    cooling_until: float = 0.0
    place: int = 0

    def serves(self, digest: str) -> bool:
        """Tell whether it can go on with what was tokenised for a definition."""
        return same_definition(self.digest, digest)


def same_definition(one: str, other: str) -> bool:
    """Tell whether two digests may be of one definition: an empty one is any."""
    return not one or not other or one == other


class Fleet:
    """Instances come and go several times a second; finding those of a model costs nothing."""

    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}
        self._models: dict[str, dict[str, Seat]] = {}
        self._lines: dict[str, list[Seat]] = {}
        """Those of each model in no order: a seat knows its place."""
        self._by_serial: dict[int, Seat] = {}
        self._local: dict[int, Seat] = {}
        self._serials = 0

    def __len__(self) -> int:
        return len(self._seats)

    def add(self, port: InstancePort, digest: str = "") -> Seat:
        """Take an instance in whose id is not here."""
        self._serials += 1
        seat = Seat(port, self._serials, digest, local=not port.outlook().distance_s)
        self._seats[port.instance] = seat
        self._models.setdefault(port.model, {})[port.instance] = seat
        line = self._lines.setdefault(port.model, [])
        seat.place = len(line)
        line.append(seat)
        self._by_serial[seat.serial] = seat
        if seat.local:
            self._local[seat.serial] = seat
        return seat

    def remove(self, instance: str) -> Seat | None:
        """Take an instance out; None where there is no such."""
        seat = self._seats.pop(instance, None)
        if seat is not None:
            model = self._models[seat.port.model]
            del model[instance]
            del self._by_serial[seat.serial]
            self._local.pop(seat.serial, None)
            line = self._lines[seat.port.model]
            line[-1].place = seat.place
            line[seat.place] = line[-1]
            line.pop()
            if not model:
                del self._models[seat.port.model], self._lines[seat.port.model]
        return seat

    def get(self, instance: str) -> Seat | None:
        """Return an instance by its id."""
        return self._seats.get(instance)

    def of(self, model: str) -> Collection[Seat]:
        """Return the instances of a model, a live view."""
        return self._models.get(model, {}).values()

    def count(self, model: str) -> int:
        """Return how many instances of a model there are."""
        return len(self._models.get(model, ()))

    def some(self, model: str, count: int, share: float) -> list[Seat]:
        """Return so many instances of a model from a place on, which is a share of them, round."""
        line = self._lines.get(model, [])
        start = int(share * len(line))
        found = line[start : start + count]
        return found + line[: min(start, count - len(found))]

    def local(self, model: str) -> list[Seat]:
        """Return those of this node."""
        return [seat for seat in self._local.values() if seat.port.model == model]

    def known(self, serials: Iterable[int], model: str) -> list[Seat]:
        """Return those of these serials that are here, and serve a model."""
        found = [seat for n in serials if (seat := self._by_serial.get(n)) is not None]
        return [seat for seat in found if seat.port.model == model]

    def check_integrity(self) -> None:
        """Raise AssertionError if the two indexes differ."""
        by_model = {name: seat for seats in self._models.values() for name, seat in seats.items()}
        assert by_model == self._seats
        assert all(self._models.values())
        for model, seats in self._models.items():
            assert all(seat.port.model == model for seat in seats.values())
        serials = {seat.serial for seat in self._seats.values()}
        assert len(serials) == len(self._seats)
        assert self._by_serial == {seat.serial: seat for seat in self._seats.values()}
        assert self._lines.keys() == self._models.keys()
        for model, line in self._lines.items():
            assert {id(seat) for seat in line} == {id(s) for s in self._models[model].values()}
            assert all(line[seat.place] is seat for seat in line)
        assert max(serials, default=0) <= self._serials
