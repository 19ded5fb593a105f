"""The viewer in a real browser, from `file://` and without a network: `make test-browser`.

Skipped unless TL_SPARSE_CHROMIUM says where Chromium is. With TL_SPARSE_SCREENSHOTS=FOLDER the
pictures of the docs are written there.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model
from test_report import HOSTILE, some_circuit
from test_viewer import EDGES, Letters, hostile_scene, letter_task

from tl_sparse import viewer
from tl_sparse.auditing import AuditReport, Finding
from tl_sparse.circuit import Circuit

CHROMIUM = os.environ.get("TL_SPARSE_CHROMIUM", "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: make test-browser")

HOSTILE_TEXTS = [
    HOSTILE,
    "<script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    "<svg><script>window.hit=1</script></svg>",
    "</script><script>window.hit=1</script>",
    "</text></g></svg><script>window.hit=1</script>",
    "<!--<script>",
    "--><script>window.hit=1</script>",
    "]]><script>window.hit=1</script>",
    "javascript:window.hit=1",
    "https://evil.example/<b>",
    '"><iframe srcdoc="<script>parent.hit=1</script>">',
    "' onmouseover='window.hit=1",
    '" autofocus onfocus="window.hit=1',
    "{{constructor.constructor('window.hit=1')()}}",
    "${window.hit=1}",
    "`${window.hit=1}`",
    "<style>*{display:none}</style>",
    "<link rel=stylesheet href=//evil.example>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<form action=//evil.example><input type=submit>",
    "<object data=//evil.example>",
    "<a href=javascript:window.hit=1>click</a>",
    "<details open ontoggle=window.hit=1>",
    "<math><mtext></mtext><script>window.hit=1</script></math>",
    "<template><script>window.hit=1</script></template>",
    "<textarea></textarea><script>window.hit=1</script>",
    "<title></title><script>window.hit=1</script>",
    "<noscript><p title='</noscript><script>window.hit=1</script>'>",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "&#60;script&#62;window.hit=1",
    "\\u003cscript\\u003ewindow.hit=1\\u003c/script\\u003e",
    "\0<script>window.hit=1</script>",
    "\u202e<script>window.hit=1</script>\u202c",
    "\u2066\u2067\u2068\u2069",
    "\u200b\ufeff\u00ad",
    "\u2028\u2029",
    "\u05d0\u05d1\u05d2 (a) \u0627\u0644",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "a\r\n\tb\x1b[31m",
    "\x7f\x80\x9f",
    "__proto__",
    "constructor",
    "toString",
    "%3Cscript%3Ewindow.hit=1%3C/script%3E",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a",
    "<" * 5000,
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page with the network off, and what it complained of."""

    def __init__(self, browser, path: Path, **how) -> None:
        size = how.pop("size", (1280, 800))
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(
            viewport=viewport, offline=True, accept_downloads=True, **how
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())

    def text(self, selector: str) -> str:
        return self.page.text_content(selector) or ""

    def download(self, selector: str) -> str:
        with self.page.expect_download() as got:
            self.page.click(selector)
        return Path(got.value.path()).read_text(encoding="utf-8")


@pytest.fixture
def opened(browser):
    some: list[Opened] = []

    def open_page(path: Path, **how) -> Opened:
        some.append(Opened(browser, path, **how))
        return some[-1]

    yield open_page
    for each in some:
        assert not each.complaints
        assert all(url.startswith(("file:", "blob:")) for url in each.requests)
        each.context.close()


def a_scene(title: str = "letters", **changes) -> viewer.Scene:
    model: Any = make_model(None, n_ctx=16)
    model.tokenizer = Letters()
    circuit = replace(some_circuit(model, EDGES, task="letters", target_loss=0.3), **changes)
    finding = Finding("necessary", "damage", 1.0, 0.5, at_most=False, why="half")
    about = {"model": circuit.model_hash, "n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges}
    report = AuditReport("letters", (finding,), provenance=about)
    return viewer.scene(model, circuit, letter_task(), report=report, title=title, progress=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pages") / "letters.html"
    viewer.write_viewer(place, a_scene())
    return place


def box(node: str) -> str:
    return f'[data-box="{node}"]'


def test_the_page_loads_without_a_network(opened, path):
    page = opened(path)
    assert page.text("h1") == "letters"
    assert "9 nodes and 6 weights" in page.text("#panel")
    assert "necessary" in page.text(".chip.holds")
    assert page.page.locator("[data-box][tabindex]").count() == 9


def test_hovering_shows_what_a_node_and_a_weight_are_worth(opened, path):
    page = opened(path)
    page.page.hover(box("0.v.3"))
    assert "weights: 2 in, 1 out" in page.text("#card")
    edge = page.page.locator('path.edge[data-source="0.v.3"]')
    edge.dispatch_event("pointermove", {"bubbles": True, "clientX": 300, "clientY": 300})
    assert "weight +1.2" in page.text("#card")


def test_a_click_on_a_node_shows_it_and_its_neighbours(opened, path):
    page = opened(path)
    page.page.click(box("0.v.3"))
    panel = page.text("#panel")
    assert "layer 0 head 0 v3" in panel
    for text in (
        "+1.5",
        "\N{MINUS SIGN}1",
        "+1.2",
        "on the task's prompts",
        "difference",
        "Where heads look",
    ):
        assert text in panel
    assert page.page.locator(".circuit [data-box].on").count() == 5
    page.page.click("#panel button.node >> nth=0")
    assert "layer 0 attention reads channel" in page.text("#panel h2")
    page.page.keyboard.press("Escape")
    assert "Audit" in page.text("#panel")


def test_a_click_on_a_weight_shows_it(opened, path):
    page = opened(path)
    page.page.locator('path.edge[data-source="0.v.3"]').dispatch_event("click", {"bubbles": True})
    assert page.text("#panel h2") == "weight +1.2"


def test_the_keyboard_goes_through_the_circuit(opened, path):
    page = opened(path)
    page.page.focus(box("0.attn_in.1"))
    page.page.keyboard.press("Enter")
    names = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowDown"):
        page.page.keyboard.press(key)
        names.append(page.text("#panel h2"))
    assert names[0] == "layer 0 head 0 v3"
    assert names[1] == "layer 0 attention writes channel 5"
    assert names[2] == names[0]
    assert names[3].startswith("layer 0 attention reads")
    page.page.keyboard.press("?")
    assert page.page.locator("#help[open]").count() == 1
    page.page.keyboard.press("Escape")
    assert page.page.locator("#help[open]").count() == 0


def test_the_slider_takes_edges_away(opened, path):
    page = opened(path)
    lines = page.page.locator("path.edge:not(.gone)")
    assert lines.count() == 6
    slider = page.page.locator("#size")
    counts = []
    while int(slider.input_value()) > 0:
        page.page.keyboard.press("[")
        says = re.match(r"(\d+) edges: loss", page.text("#size-says"))
        assert says is not None
        counts.append(int(says[1]))
        assert lines.count() == counts[-1]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    slider.fill(slider.get_attribute("max"))
    assert lines.count() == 6


def test_a_click_on_a_token_shows_where_heads_look_from_there(opened, path):
    page = opened(path)
    row = page.page.locator(".pattern .line").first.locator(".token")
    row.nth(1).click()
    row = page.page.locator(".pattern .line").first.locator(".token")
    assert row.nth(1).get_attribute("data-peak") is not None
    assert "%" in (row.nth(0).get_attribute("title") or "")
    assert row.nth(3).get_attribute("title") == ""
    page.page.select_option("#prompt", "1")
    assert page.page.locator(".pattern .line").first.inner_text().startswith("b")


def test_labels_stay_after_a_reload_and_leave_with_the_page_and_the_json(opened, path, tmp_path):
    page = opened(path)
    page.page.click(box("0.v.3"))
    page.page.fill("#labels-of-node", "the <b>letter</b> before")
    page.page.fill("#groups-of-node", "copying")
    page.page.reload()
    assert page.text(f"{box('0.v.3')} .label") == "the <b>letter</b> before"
    assert page.page.locator(f"{box('0.v.3')} circle.group").count() == 1
    assert "copying" in page.text("#panel")
    circuit = Circuit.from_json(page.download("#export"))
    assert circuit.labels == {"0.v.3": "the <b>letter</b> before"}
    assert circuit.groups == {"0.v.3": "copying"}
    assert replace(circuit, labels={}, groups={}) == Circuit.from_json(
        json.dumps(a_scene().data["circuit"])
    )
    saved = tmp_path / "saved.html"
    saved.write_text(page.download("#save"), encoding="utf-8")
    again = opened(saved)
    assert again.text(f"{box('0.v.3')} .label") == "the <b>letter</b> before"
    assert "copying" in again.text("#panel")
    page.page.click(box("0.v.3"))
    page.page.fill("#labels-of-node", "")
    assert page.page.locator(f"{box('0.v.3')} .label").count() == 0


def test_two_circuits_stand_side_by_side(opened, tmp_path):
    path = tmp_path / "two.html"
    viewer.write_viewer(path, a_scene("one"), a_scene("two", target_loss=0.5))
    page = opened(path)
    first, second = (page.page.locator(f'[data-scene="{i}"]').bounding_box() for i in (0, 1))
    assert first["x"] + first["width"] <= second["x"] + 2
    assert abs(first["y"] - second["y"]) < 2
    assert "edges in both" in page.text("#panel")
    page.page.click('[data-scene="1"] [data-box="0.v.3"]')
    assert page.page.locator('[data-scene="0"] [data-box="0.v.3"].chosen').count() == 1


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_texts_have_contrast(opened, path, size, scheme):
    page = opened(path, size=size, color_scheme=scheme)
    page.page.click(box("0.v.3"))
    assert page.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    contrasts = page.page.evaluate(CONTRAST)
    assert len(contrasts) > 20
    assert min(contrasts) >= 4.5


CONTRAST = """() => {
  const channels = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (c) => { const [r, g, b] = channels(c).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const some = document.querySelectorAll(
    "#panel :is(p,h2,h3,dt,dd,td),header button,.chip,.legend li");
  return [...some].map((e) => light(getComputedStyle(e).color))
    .map((ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
}"""


def test_the_theme_can_be_chosen(opened, path):
    page = opened(path, color_scheme="light")
    before = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.page.keyboard.press("t")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_fifty_hostile_texts_are_shown_and_never_run(opened, tmp_path):
    assert len(HOSTILE_TEXTS) == 50
    path = tmp_path / "hostile.html"
    viewer.write_viewer(path, scene_of_hostile_prompts())
    page = opened(path)
    lines = page.page.evaluate(
        "[...document.querySelectorAll('.prompts .line')].map(e => e.firstChild.textContent)"
    )
    assert lines == HOSTILE_TEXTS
    for text in HOSTILE_TEXTS:
        page.page.click(box("0.v.3"))
        page.page.fill("#labels-of-node", text)
        page.page.fill("#groups-of-node", text)
        page.page.keyboard.press("Escape")
        page.page.keyboard.press("Escape")
        assert page.page.evaluate("window.hit") is None
    saved = tmp_path / "saved.html"
    saved.write_text(page.download("#save"), encoding="utf-8")
    again = opened(saved)
    assert again.page.evaluate("window.hit") is None
    assert again.page.locator("iframe,object,img,link,base,form[action]").count() == 0
    assert again.page.locator("script").count() == 2
    shown = again.page.evaluate(
        "[...document.querySelectorAll('.prompts .line')].map(e => e.textContent)"
    )
    assert "<script>alert(1)</script>" in shown[0]
    circuit = Circuit.from_json(again.download("#export"))
    assert circuit.labels["0.v.3"] == HOSTILE_TEXTS[-1]


def scene_of_hostile_prompts() -> viewer.Scene:
    """A hostile circuit, and each of the texts a prompt of one token."""
    seen = hostile_scene()
    line = {"scale": 1.0, "values": [64]}
    lines = [
        dict(seen.data["prompts"][0]) | {"tokens": [i], "answer": text, "wrong": text}
        for i, text in enumerate(HOSTILE_TEXTS)
    ]
    nodes = [dict(node) | {"prompts": [line] * 50} for node in seen.data["nodes"]]
    patterns = [dict(head) | {"patterns": [[100]] * 50} for head in seen.data["patterns"]]
    changed = {"texts": HOSTILE_TEXTS, "prompts": lines, "nodes": nodes, "patterns": patterns}
    return replace(seen, data=dict(seen.data) | changed)


def test_five_hundred_edges_can_be_gone_through(opened, tmp_path):
    model: Any = make_model(None, n_ctx=16, d_model=64, d_mlp=256)
    model.tokenizer = Letters()
    edges = [
        (f"0.mlp_in.{i}", f"0.mlp_neuron.{j}", 0.2 + 0.01 * j) for i in range(25) for j in range(20)
    ]
    circuit = some_circuit(model, edges, task="letters")
    path = tmp_path / "large.html"
    viewer.write_viewer(path, viewer.scene(model, circuit, letter_task(), progress=False))
    page = opened(path)
    assert page.page.locator("path.edge").count() == 500
    took = page.page.evaluate("""() => { const began = performance.now();
      const box = document.querySelector('[data-box="0.mlp_neuron.3"]');
      box.dispatchEvent(new MouseEvent("click", {bubbles: true}));
      return performance.now() - began; }""")
    assert took < 2000  # a click is answered; some 20 ms on an idle core
    assert page.page.locator("path.edge.on").count() == 25


@pytest.mark.skipif("TL_SPARSE_SCREENSHOTS" not in os.environ, reason="makes the docs' pictures")
def test_pictures_for_the_docs(opened):
    """Of the demo's circuits: TL_SPARSE_PAGES is the folder with sparse.html and both.html."""
    pages, out = (Path(os.environ[n]) for n in ("TL_SPARSE_PAGES", "TL_SPARSE_SCREENSHOTS"))
    for scheme in ("light", "dark"):
        page = opened(pages / "sparse.html", color_scheme=scheme)
        page.page.screenshot(path=out / f"viewer-{scheme}.png")
        page.page.click("[data-box*='attn_out'] >> nth=0")
        page.page.mouse.move(5, 5)
        page.page.screenshot(path=out / f"viewer-node-{scheme}.png")
    page = opened(pages / "both.html")
    page.page.screenshot(path=out / "viewer-both.png")
    page = opened(pages / "sparse.html", size=(390, 844))
    page.page.screenshot(path=out / "viewer-phone.png")
