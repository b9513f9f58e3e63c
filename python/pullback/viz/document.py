"""Any page as text: scripts and styles of `assets/`, one subject a file, put together around its data as inert JSON.

A page needs nothing but a browser. It states a content policy that forbids it every network access; only a page that a
server hands out may speak, and only to that server.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

_ASSETS = files("pullback.viz") / "assets"


def document(
    template: str, data: Any, heading: str, *, styles: Sequence[str], scripts: Sequence[str], allowed: str = ""
) -> str:
    """The text of a page.

    Args:
        template: name of the HTML file that is the page's body, with {{data}} in it; the scripts stand behind it.
        data: what the scripts find, as JSON.
        heading: the window's title.
        styles, scripts: names of files, in the order in which they stand on the page.
        allowed: what the content policy allows besides, ended by "; ".
    """
    parts = {"data": _as_inert_json(data), "script": "\n".join(map(read_asset, scripts))}
    body = _filled(read_asset(template) + read_asset("script.html"), parts)
    return still(body, heading, styles=styles, allowed=f"script-src 'unsafe-inline'; {allowed}")


def still(body: str, heading: str, *, styles: Sequence[str], allowed: str = "") -> str:
    """A page that needs no script, from the HTML of its body; what the content policy allows is ended by "; "."""
    style = "\n".join(map(read_asset, styles))
    parts = {"title": escaped(heading), "style": style, "allowed": allowed, "body": body}
    return _filled(read_asset("frame.html"), parts)


def _filled(page: str, parts: Mapping[str, str]) -> str:
    # One pass: braces inside the data must not be taken for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def framed(page: str, title: str, height: int | str) -> str:
    """An iframe that holds a page, for a notebook's `_repr_html_`.

    The frame keeps the notebook's style and scripts apart from the page's, and its sandbox gives the page, whose text
    comes from a model's vocabulary, no hold on the notebook; it may save files when told to.
    """
    css_height = f"{height}px" if isinstance(height, int) else height
    return (
        f'<iframe srcdoc="{html.escape(page)}" title="{html.escape(title)}" sandbox="allow-scripts allow-downloads" '
        f'style="width:100%;height:{html.escape(css_height)};border:0;border-radius:8px"></iframe>'
    )


def read_asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _as_inert_json(value: Any) -> str:
    """JSON that no HTML parser can leave: no `<` survives, so neither `</script>` nor `<!--` can; ASCII throughout."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def escaped(text: str) -> str:
    """As HTML, without lone surrogates, which no file can hold; byte-level vocabularies do produce them."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
