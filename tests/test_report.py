import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch
from conftest import write_edges

from tl_sparse.circuit import Circuit, Edge, Node, Site
from tl_sparse.curves import draw_curves
from tl_sparse.drawing import draw_circuit
from tl_sparse.explain import explain
from tl_sparse.history import History
from tl_sparse.interface import residual_links
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.report import Arm, write_page
from tl_sparse.sites import model_hash, site_map
from tl_sparse.tasks.base import Pair, PairTask, Split
from tl_sparse.wording import escape, visible

HOSTILE = "</pre></title><script>alert(1)</script>\"'&\0\u202e<img src=http://evil.example/x>\u05d0"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "strong"),
    *("section", "div", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details"),
    *("summary", "pre", "figure", "figcaption", "ul", "li", "svg", "g", "path", "rect", "text"),
    "circle",
}


class HostileTokens:
    """Token i is the i-th of some texts that a page must not believe."""

    texts = (HOSTILE, "a", "b", "\0", "\u202e", "<b>", "x")

    def encode(self, text, add_special_tokens=False):
        found = re.findall("|".join(map(re.escape, self.texts)), text)
        return [self.texts.index(token) for token in found]

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta" and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def some_circuit(model, edges, **fields) -> Circuit:
    """A circuit by the names of its nodes; its edges are written into the model."""
    write_edges(model, edges)
    edges = tuple(Edge(Node.parse(a), Node.parse(b), w) for a, b, w in edges)
    return Circuit(
        nodes=tuple({node for edge in edges for node in (edge.source, edge.target)}),
        edges=edges,
        references={i.site: (0.0,) * i.width for i in site_map(model, final=True).sites},
        model_hash=model_hash(model),
        **{"task": "quotes", **fields},
    )


EDGES = [
    ("0.mlp_in.4", "0.mlp_neuron.3", 3.25),
    ("0.mlp_neuron.3", "0.mlp_out.1", -0.75),
    ("1.attn_in.1", "1.k.3", 1.5),
    ("1.attn_in.4", "1.v.2", 2.75),
    ("1.v.2", "1.attn_out.5", -0.25),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = HookedSparseTransformer(
        dict(
            n_layers=2,
            d_model=6,
            d_head=2,
            n_heads=2,
            d_mlp=4,
            n_ctx=8,
            d_vocab=7,
            act_fn="gelu",
            normalization_type="RMSPre",
            device="cpu",
            default_prepend_bos=False,
        )
    )
    model.tokenizer = HostileTokens()  # pyright: ignore[reportAttributeAccessIssue]  # a stand-in
    return model


@pytest.fixture
def arm(model):
    prompts: dict[Split, str] = {"train": "x", "validation": "xx", "test": "xxx"}
    pairs: dict[Split, list[Pair]] = {
        split: [Pair((x + "a", x + "b"), (HOSTILE, "x"))] for split, x in prompts.items()
    }
    task = PairTask(HOSTILE, pairs, tokenizer=HostileTokens())
    circuit = some_circuit(model, EDGES, task=HOSTILE)
    records = ({"tokens": 10, "validation_loss": 4.0, "weight_density": 1.0},
               {"tokens": 20, "validation_loss": float("nan"), "weight_density": 0.1},
               {"tokens": 30, "validation_loss": 3.0, "weight_density": 0.03})  # fmt: skip
    return Arm(
        name=HOSTILE,
        description=HOSTILE,
        circuit=circuit,
        explanation=explain(circuit, model, task),
        history=History(records),
        numbers={HOSTILE: HOSTILE, "edges": 5},
        note=HOSTILE,
    )


@pytest.fixture
def page(arm, tmp_path):
    rows = [
        {"model": HOSTILE, "loss": 3.25, HOSTILE: None},
        {"model": "b", "loss": None, "ok": True},
    ]
    dense = Arm(name="dense", note="cannot do the task")
    path = tmp_path / "page.html"
    write_page(path, title=HOSTILE, arms=[arm, dense], rows=rows, lead=[HOSTILE],
               provenance={HOSTILE: [HOSTILE]})  # fmt: skip
    return path.read_text(encoding="utf-8")


def test_hostile_text_stays_text(page):
    parsed = Page(page)
    assert set(parsed.tags) <= TAGS
    assert parsed.open == []
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "\0" not in page
    assert "\u202e" not in page
    assert "<script>alert(1)</script>" in "".join(parsed.text)
    assert "\\x00\\u202e" in "".join(parsed.text)


def test_the_page_asks_for_nothing_from_anywhere(page):
    parsed = Page(page)
    assert not {"src", "href", "xlink:href", "action", "xmlns"} & {
        name for name, _ in parsed.attributes
    }
    for name, value in parsed.attributes:
        if not name.startswith("data-"):  # those ask for nothing
            assert not re.search(r"https?:|//|url\(", value or ""), (name, value)
    style = page.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"https?:|url\(|@import", style)


def test_a_page_links_only_to_files_that_stand_beside_it(tmp_path):
    see = {"a page?.html": "Look <here>", "//evil.example/x": "there"}
    write_page(tmp_path / "page.html", title="t", arms=[], see=see)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<a href="./a%20page%3F.html">Look &lt;here&gt;</a>' in text
    assert 'href=".///evil.example/x"' in text


def test_every_svg_is_xml_and_every_element_of_it_is_known(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) >= 3
    for drawing in drawings:
        assert {e.tag for e in ElementTree.fromstring(drawing).iter()} <= TAGS


def test_every_edge_stands_in_words_in_the_table_and_in_the_drawing(arm, page):
    text = "".join(Page(page).text)
    words = str(arm.explanation)
    for source, target, weight in EDGES:
        assert f"{abs(weight):.3g} x " in words
        said = [
            t for t in re.findall(r"<title>(.*?)</title>", page) if f"weight {weight:+.4g}" in t
        ]
        channels = [name.rpartition(".") for name in (source, target)]
        assert any(all(site.split(".")[1] in t for site, _, _ in channels) for t in said), said
        assert f"{weight:+.4g}" in text
        assert f"{weight:+.2f}".replace("-", "\N{MINUS SIGN}") in text


def test_the_page_says_that_nothing_was_audited_and_which_arm_cannot_do_the_task(page):
    text = " ".join("".join(Page(page).text).split())
    assert "Not audited." in text
    assert "Circuits are not believed until audited: `tl-sparse audit` tries to" in text
    assert "cannot do the task" in text


def test_a_drawing_shows_the_residual_identity_the_tokens_and_the_answers(model):
    circuit = some_circuit(model, EDGES)
    svg = draw_circuit(
        circuit,
        residual=residual_links(circuit),
        tokens={4: [("'('", 1.25)]},
        logits=[(Node(Site(1, "attn_out"), 5), "')'", -0.5)],
        d_head=2,
    )
    tree = ElementTree.fromstring(svg)
    kinds = [path.attrib["class"] for path in tree.iter("path")]
    assert kinds.count("residual") == 1
    assert kinds.count("token") == 2  # channel 4 is read twice
    assert kinds.count("look") == 1  # k of head 1 chooses for its v
    assert (
        sorted(kind for kind in kinds if "edge" in kind)
        == ["edge negative"] * 2 + ["edge positive"] * 3
    )
    assert kinds.count("logit negative") == 1
    labels = [text.text for text in tree.iter("text")]
    assert {"neuron 3", "H1 k1", "H1 v0", "channel 5", "'(' +1.25", "')'", "layer 1"} <= set(labels)


def test_boxes_of_a_column_never_overlap_and_columns_go_forward(model):
    svg = ElementTree.fromstring(draw_circuit(some_circuit(model, EDGES), d_head=2))
    boxes = [[float(rect.attrib[k]) for k in ("x", "y", "width", "height")]
             for rect in svg.iter("rect") if rect.get("class") != "band"]  # fmt: skip
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    for path in svg.iter("path"):
        xs = [float(x) for x in re.findall(r"[ML](-?[\d.]+),", path.attrib["d"])]
        assert xs == sorted(xs)


def test_a_large_circuit_is_drawn_by_its_largest_edges_and_says_so(model):
    edges = [
        (f"0.mlp_in.{a}", f"0.mlp_neuron.{b}", 1.0 + a + 10 * b) for a in range(6) for b in range(4)
    ]
    svg = draw_circuit(some_circuit(model, edges), max_edges=10)
    tree = ElementTree.fromstring(svg)
    drawn = [path for path in tree.iter("path") if "edge" in path.attrib["class"]]
    assert len(drawn) == 10
    assert "The 10 largest of 24 edges are drawn." in svg
    assert "weight +36" in svg
    assert "weight +1<" not in svg


def test_an_empty_circuit_and_an_empty_history_make_a_page(model, tmp_path):
    empty = some_circuit(model, [])
    arm = Arm(name="empty", circuit=empty, explanation=explain(empty, model), history=History(()))
    write_page(tmp_path / "deep" / "page.html", title="t", arms=[arm])
    text = "".join(Page((tmp_path / "deep" / "page.html").read_text(encoding="utf-8")).text)
    assert "The circuit has no nodes." in text
    assert "There is no weight density to draw." in text


def test_a_circuit_without_words_is_drawn_all_the_same(model, tmp_path):
    arm = Arm(name="bare", circuit=some_circuit(model, EDGES))
    write_page(tmp_path / "page.html", title="t", arms=[arm])
    assert (
        'class="residual"'
        in (tmp_path / "page.html").read_text(encoding="utf-8").split("<figcaption>")[0]
    )


def test_a_curve_goes_through_its_points_on_axes_that_enclose_them():
    figure = draw_curves({"a": [(0.0, 4.0), (100.0, 3.0)]}, x_label="tokens", y_label="loss")
    tree = ElementTree.fromstring(figure)
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in tree.iter("circle")]
    ticks = {t.text: float(t.attrib["y"]) - 4 for t in tree.iter("text") if t.get("class") == "end"}
    assert dots[0] == pytest.approx((56.0, ticks["4"]), abs=0.1)
    assert dots[1] == pytest.approx((540.0, ticks["3"]), abs=0.1)


@pytest.mark.parametrize(
    ("xs", "first"),
    [((1.0, 40.0), "0"), ((0.15, 0.15), "0"), ((2.5, 3.0), "2.5"), ((-1.0, 2.0), "-1")],
)
def test_the_axis_below_begins_at_zero_unless_that_is_far_away(xs, first):
    figure = draw_curves({"a": [(x, x) for x in xs]}, x_label="x", y_label="y")
    tree = ElementTree.fromstring(figure)
    assert next(t.text for t in tree.iter("text") if t.get("y") == "268.0") == first
    assert min(float(dot.attrib["cx"]) for dot in tree.iter("circle")) >= 56.0


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    figure = draw_curves(
        {"a": [(1.0, 1.0), (2.0, 0.1), (3.0, 0.01)]}, x_label="x", y_label="y", log_y=True
    )
    a, b, c = (float(dot.attrib["cy"]) for dot in ElementTree.fromstring(figure).iter("circle"))
    assert b - a == pytest.approx(c - b, abs=0.2)
    assert b > a


def test_both_axes_can_be_logarithmic_and_lose_what_has_no_logarithm():
    figure = draw_curves(
        {"a": [(0.0, 1.0), (1.0, 1.0), (10.0, 0.1), (100.0, 0.01)]},
        x_label="x", y_label="y", log_x=True, log_y=True,
    )  # fmt: skip
    dots = [float(dot.attrib["cx"]) for dot in ElementTree.fromstring(figure).iter("circle")]
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    assert dots[0] < dots[1]


@pytest.mark.parametrize("text", ["\ud800", "\x1b[31m", "\ufffe", "\u200f", "\u2028", "\x85"])
def test_what_cannot_be_seen_is_written_as_an_escape(text):
    assert visible(text).startswith("\\")
    escape(text).encode()
