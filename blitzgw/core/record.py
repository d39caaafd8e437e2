"""`record`: a frozen dataclass where many are made.

What is frozen takes three times as long to make: each field is set by a call. Of what there is one
of for every step, token or request, that is a tenth of what a node computes. Type checkers take
`record` for `dataclass` and refuse what would change one; at run time nothing guards it.

    @record(frozen=True, slots=True)
    class Told: …
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen, slots):  # noqa: ANN001, ANN201  its types are those of `dataclass`
        """Make a dataclass that has a hash, as frozen ones have."""
        assert frozen, "what is not frozen is an ordinary dataclass"
        return dataclass(slots=slots, unsafe_hash=True)


__all__ = ["record"]
