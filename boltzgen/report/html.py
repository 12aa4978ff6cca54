"""Pieces of HTML that the report is put together from. Numbers stand in ``data`` elements with their full value."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["count", "data", "duration", "figure", "interval", "note", "number", "pairs", "picture", "scientific"]
__all__ += ["section", "signed", "table"]


def section(title: str, body: str) -> str:
    """A section under a heading; the body is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def note(text: str) -> str:
    """A remark in small type; the text is plain."""
    return f'<p class="note">{escape(text)}</p>\n'


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table; head is plain text, each row a CSS class and cells of HTML, the first of which is its heading."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for style, (first, *others) in rows:
        cells = f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others)
        lines.append(f'<tr class="{style}">{cells}</tr>' if style else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names (plain) beside values (HTML), in two columns where the page is wide."""
    lines = (f"<div><span>{escape(name)}</span><span>{value}</span></div>" for name, value in rows)
    return '<div class="pairs">\n' + "\n".join(lines) + "\n</div>\n"


def figure(source: Figure, caption: str, style: str = "", dpi: int = 130) -> str:
    """A matplotlib figure as an embedded PNG; the caption is plain text, and also the description for readers."""
    buffer = io.BytesIO()
    source.savefig(buffer, format="png", dpi=dpi)
    return picture(buffer.getvalue(), caption, style)


def picture(png: bytes, caption: str, style: str = "") -> str:
    """A PNG file as an embedded picture; caption as for `figure`."""
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    kind = f' class="{style}"' if style else ""
    text = escape(caption)
    return f'<figure{kind}><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'


def number(value: float) -> str:
    """Two decimals, with a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def signed(value: float) -> str:
    """Two decimals, plus signs too."""
    return f"{value:+.2f}".replace("-", "−")


def scientific(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def count(value: float) -> str:
    """A whole number, thousands apart."""
    return f"{int(value):,}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they are needed."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def data(value: Any, show: Callable[[float], str] = number) -> str:
    """A number as shown, with its full value; what is missing or not finite is said."""
    if value is None:
        return "not available"
    value = float(value)
    if math.isnan(value):
        return "not a number"
    text = ("∞" if value > 0 else "−∞") if math.isinf(value) else show(value)
    return f'<data value="{value!r}">{escape(text)}</data>'


def interval(low: Any, high: Any) -> str:
    """[low, high] in small type; nothing where both are missing."""
    return "" if low is None and high is None else f"<small>[{data(low)}, {data(high)}]</small>"
