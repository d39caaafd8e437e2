"""What a template may see is judged once for each type, and as jinja2 judges it."""

from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError

from blitzgw.api import sandbox
from blitzgw.api.sandbox import TemplateSandbox


class Harmless:
    def pop(self, index: int) -> int:
        return index


def test_what_is_remembered_goes_by_type_and_name():
    environment = TemplateSandbox([])
    copied = environment.from_string("{{ given.copy() }}")
    changed = environment.from_string("{{ given.pop(0) }}")
    for _ in range(2):
        assert copied.render(given=[1]) == "[1]"
        assert copied.render(given={"a": 1}) == "{'a': 1}"
        assert changed.render(given=Harmless()) == "0"
        for given in ([1], {0: 1}):
            with pytest.raises(SecurityError):
                changed.render(given=given)
        with pytest.raises(SecurityError):
            environment.from_string("{{ given.__class__() }}").render(given="a")


def test_names_of_clients_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_JUDGED", 3)
    environment = TemplateSandbox([])
    for i in range(10):
        environment.is_safe_attribute("", f"name_{i}", None)
    assert len(environment._judged) == 3
