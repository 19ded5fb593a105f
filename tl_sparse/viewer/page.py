"""`write_viewer`: one HTML file to look at one or two circuits, without network or server.

The file holds a drawing (SVG), the data (JSON, which is never run) and one script of our own, which
the page's content security policy names by its hash: nothing else in the file can run, whatever
stands in prompts, tokens or labels. The script writes texts as text, never as HTML.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tl_sparse.files import write_text
from tl_sparse.markup import DARK, LIGHT, whole_page
from tl_sparse.viewer.scene import Scene
from tl_sparse.wording import escape


def write_viewer(path: str | Path, scene: Scene, other: Scene | None = None) -> None:
    """Write the page of one circuit, or of two side by side, whole or not at all.

    Raises:
        OSError: If the file can't be written.
    """
    write_text(path, viewer_page(scene, other))


def viewer_page(scene: Scene, other: Scene | None = None) -> str:
    """Give the page as HTML text."""
    scenes = [scene] if other is None else [scene, other]
    title = " and ".join(dict.fromkeys(each.title for each in scenes))
    script = _asset("viewer.js")
    body = _BODY.format(
        title=escape(title),
        scenes="\n".join(_scene(each, i) for i, each in enumerate(scenes)),
        data=in_script({"scenes": [dict(each.data) | {"title": each.title} for each in scenes]}),
        script=script,
    )
    style = _THEMES + _asset("viewer.css")
    return whole_page(title, body, style=style, kind="viewer", script_hash=_hash(script))


def in_script(data: Mapping[str, Any]) -> str:
    r"""Write JSON that can stand in a script element: no text in it can end the element.

    Examples:
        >>> in_script({"a": "</script>"})
        '{"a":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _scene(scene: Scene, place: int) -> str:
    return (
        f'<section class="scene" data-scene="{place}" aria-label="{escape(scene.title)}">'
        f'<div class="stage" tabindex="-1">{scene.drawing}</div></section>'
    )


def _asset(name: str) -> str:
    return (files("tl_sparse.viewer") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


_THEMES = (
    f":root[data-theme=light]{{{LIGHT}color-scheme:light}}"
    f":root[data-theme=dark]{{{DARK}color-scheme:dark}}"
)
"""Light or dark by the reader's choice, whatever the system says."""

_BODY = """<header id="top"><h1>{title}</h1>
<noscript><p>Without JavaScript there is the drawing alone.</p></noscript></header>
<main id="scenes">
{scenes}
</main>
<aside id="panel" aria-live="polite"></aside>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>"""
