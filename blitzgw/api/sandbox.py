"""The sandbox of chat templates, which come with a model's files or from another node.

On top of jinja2's own rules (no private attributes, no changes to what is passed in) nothing is
computed while a template is compiled, and powers and products have a largest size. A template is
still a program that may loop: it is rendered only for requests to its own model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_BITS = 4096
"""Longest whole number of a power or product: above any that a prompt has a use for, and computed
in a microsecond."""

MAX_REPEATED = 1 << 20
"""Longest result, in characters or items, of repeating a text or a list: an indentation has tens;
the context of a model takes no more."""


MAX_JUDGED = 1024
"""Attributes of types whose safety is remembered: a template names some tens, but a client's words
may become names, too."""


class _LazyCodeGenerator(CodeGenerator):
    """Leaves all computing to the rendering, also that of constants.

    jinja2 computes a constant expression that is printed while it compiles, whatever `optimized`
    says, and so with filters: `{{ "x"|center(1000000000) }}` takes a gigabyte before any request.
    """

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_EvalContextModifier(  # noqa: N802  jinja2's name
        self, node: nodes.EvalContextModifier, frame: Frame
    ) -> None:
        """Set `{% autoescape … %}` when it is rendered, unless it is a plain constant."""
        if all(isinstance(keyword.value, nodes.Const) for keyword in node.options):
            super().visit_EvalContextModifier(node, frame)
            return
        for keyword in node.options:
            self.writeline(f"context.eval_ctx.{keyword.key} = ")
            self.visit(keyword.value, frame)
            frame.eval_ctx.volatile = True


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox without work at compile time, and with bounds on `*` and `**`."""

    code_generator_class = _LazyCodeGenerator
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, extensions: Sequence[str | type[Any]]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False
        )
        self._judged: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may see an attribute: jinja2's judgement, one for each type.

        It goes by the name and by what the object is an instance of.
        """
        key = type(obj), attr
        safe = self._judged.get(key)
        if safe is None:
            safe = super().is_safe_attribute(obj, attr, value)
            if len(self._judged) < MAX_JUDGED:
                self._judged[key] = safe
        return safe

    def call_binop(
        self,
        context: Context,  # noqa: ARG002  jinja2's signature
        operator: str,
        left: Any,
        right: Any,
    ) -> Any:
        """Multiply or raise to a power; raises SecurityError where the result is too large."""
        return _BOUNDED[operator](left, right)


def _power(left: Any, right: Any) -> Any:
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and right > 0 and left.bit_length() * right > MAX_BITS:
        raise SecurityError("a power in the template is too large")
    return left**right


def _product(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if not isinstance(one, int):
            continue
        if isinstance(other, int):
            if one.bit_length() + other.bit_length() > MAX_BITS:
                raise SecurityError("a product in the template is too large")
        elif hasattr(other, "__len__") and len(other) * one > MAX_REPEATED:
            raise SecurityError("a repetition in the template is too long")
    return operator.mul(left, right)


_BOUNDED: dict[str, Callable[[Any, Any], Any]] = {"*": _product, "**": _power}
