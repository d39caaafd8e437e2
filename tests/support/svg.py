"""Parts of SVG images that the plots of benches share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.sax.saxutils import escape

COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a")
GREY, RULE = "#8c959f", "#d0d7de"
MIN_STEP = 1e-4


def image(width: float, height: float, parts: Iterable[str]) -> str:
    """Return an image on white."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    font = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>'
    background = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    """Return words that start, have their middle or end at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def polyline(points: Iterable[tuple[float, float]], colour: str, more: str = "") -> str:
    """Return a line through points of the image."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{where}" fill="none" stroke="{colour}" {more}/>'


def box(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    """Return a filled rectangle, with what is shown when it is pointed at."""
    where = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    inner = f"><title>{escape(title)}</title></rect>" if title else "/>"
    return f'<rect {where} fill="{colour}"{inner}'


def nice(step: float) -> float:
    """Return the next of 1, 2, 5, 10 … times a power of ten."""
    step = max(step, MIN_STEP)
    base = 10 ** math.floor(math.log10(step))
    return next(base * factor for factor in (1, 2, 5, 10) if base * factor >= step * 0.999)
