"""An audit as a page, in a notebook and as a file that is read back."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from test_report import EDGES, HOSTILE, TAGS, Page, model, some_circuit  # noqa: F401

from tl_sparse.audit_page import audit_section, write_audit_page
from tl_sparse.auditing import CLAIMS, AuditReport, Finding
from tl_sparse.auditing.findings import Effect
from tl_sparse.report import Arm, write_page

NAN = math.nan
REPORT = AuditReport(
    HOSTILE,
    (
        Finding("sufficient", "loss alone", 0.152, 0.165, at_most=True, why="asked for",
                control=0.693, control_name=HOSTILE, over_seeds=(0.149, 0.171)),
        Finding("sufficient", HOSTILE, 0.273, 0.5, at_most=False, why=HOSTILE,
                spread=(0.211, 0.322)),
        Finding("necessary", "gain gone", 0.987, 0.5, at_most=False, why="half"),
        Finding("robust", "worst part", NAN, 0.0, at_most=False, why="empty", spread=(NAN, 0.4)),
        Finding("minimal", "needless", 0.0, 0.0, at_most=True, why="none", over_seeds=(NAN,)),
    ),
    {"edges left, loss": [(1.0, 0.7), (3.0, NAN), (4.0, 0.1)], "edges left, empty": [(1.0, 0.7)],
     "toy, long: right, circuit": [(8.0, 1.0)], HOSTILE: [(0.25, 1.0)]},
    {"CPR": 0.931, "CMD": NAN},
    (Effect("0.mlp_in.4", 0.125, 0.25), Effect(HOSTILE, NAN, 0.5), Effect("1.v.2", 1.75, NAN)),
    (Effect("0.mlp_in.4 -> 0.mlp_neuron.3", 0.375, -0.0625),),
    {"audit": {"n_random": 25, HOSTILE: None}, "losses": {"whole": NAN}, "model": HOSTILE},
)  # fmt: skip
PLAIN = re.sub(r"\s+", " ", "".join(Page(audit_section(REPORT)).text))
KNOWN = TAGS | {"span", "code", "h3"}


class Tables(Page):
    """Collects the rows of all tables, as texts of their cells."""

    def __init__(self, text: str) -> None:
        self.rows: list[list[str]] = []
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        super().handle_data(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


def rows_of(report: AuditReport) -> list[dict[str, str]]:
    """All table rows, each by the names of its columns."""
    head, found = [], []
    for row in Tables(audit_section(report)).rows:
        if row[0] in ("verdict", "part"):
            head = row
        else:
            found.append(dict(zip(head, row, strict=True)))
    return found


def test_every_claim_stands_with_its_verdict_in_words_and_in_order():
    summaries = re.findall(r"<summary>(.*?)</summary>", audit_section(REPORT))
    said = ["".join(Page(summary).text) for summary in summaries][:8]
    words = {"holds": "\N{CHECK MARK}", "fails": "\N{BALLOT X}", "not tested": "\N{WHITE CIRCLE}"}
    for line, (claim, verdict) in zip(said, REPORT.verdicts().items(), strict=True):
        assert line.startswith(f"{words[verdict]} {verdict} {claim} {CLAIMS[claim]}")
    assert said[0].endswith("(1 of 2 lines fails)")
    assert said[2].endswith("(1 of 1 line fails)")


def test_every_line_stands_with_value_threshold_spread_seeds_control_and_reason():
    rows = {row["line"]: row for row in rows_of(REPORT) if "line" in row}
    assert len(rows) == 5
    assert rows["loss alone"]["value"] == "0.152"
    assert rows["loss alone"]["threshold"] == "<= 0.165"
    assert rows["loss alone"]["on other seeds"] == "0.149, 0.171"
    assert rows["loss alone"]["control"].startswith("0.693 (</pre></title><script>")
    assert rows["loss alone"]["why this threshold"] == "asked for"
    assert rows["loss alone"]["verdict"].endswith("holds")
    (failing,) = (row for name, row in rows.items() if "<script>" in name)
    assert failing["verdict"].endswith("fails")
    assert failing["threshold"] == ">= 0.5"
    assert failing["spread"] == "0.211 to 0.322"
    assert rows["gain gone"].keys() == {
        *("verdict", "line", "value", "threshold", "why this threshold")
    }


def test_what_is_not_finite_is_a_dash():
    rows = {row["line"]: row for row in rows_of(REPORT) if "line" in row}
    assert rows["worst part"]["value"] == "-"
    assert rows["worst part"]["verdict"].endswith("fails")
    assert rows["worst part"]["spread"] == "- to 0.4"
    assert rows["needless"]["on other seeds"] == "-"
    assert not re.search(r"\b(nan|inf|None)\b", PLAIN)


def test_parts_stand_by_what_they_are_worth():
    worth = [row for row in rows_of(REPORT) if "part" in row]
    assert [row["ablation"] for row in worth] == ["1.75", "0.125", "-", "0.375"]
    assert [row["integrated"] for row in worth] == ["-", "0.25", "0.5", "-0.0625"]


def test_of_very_many_parts_the_most_needed_are_shown():
    many = tuple(Effect(f"0.q.{i}", float(i), 0.0) for i in range(250))
    worth = [row["part"] for row in rows_of(replace(REPORT, nodes=many)) if "part" in row]
    assert len(worth) == 201
    assert worth[0] == "0.q.249"
    assert "0.q.49" not in worth


def test_curves_of_one_axis_share_a_figure_and_measures_are_named():
    drawings = re.findall(r'<svg class="plot" .*?</svg>', audit_section(REPORT), flags=re.DOTALL)
    assert len(drawings) == 3
    assert ">toy, long: right<" in drawings[1]
    first = ElementTree.fromstring(drawings[0])
    assert len(list(first.iter("circle"))) == 3
    assert "edges left" in {text.text for text in first.iter("text")}
    assert "CPR0.931" in PLAIN
    assert "audit: n_random25" in PLAIN


@pytest.mark.parametrize("made", ["page", "notebook", "arm"])
def test_hostile_names_stay_text(made, tmp_path):
    place = tmp_path / "page.html"
    write_audit_page(place, REPORT)
    if made == "arm":
        write_page(place, title="t", arms=[Arm(name="sparse", audit=REPORT)])
    text = REPORT._repr_html_() if made == "notebook" else place.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    assert set(parsed.tags) <= KNOWN
    assert "<script>alert(1)</script>" in "".join(parsed.text)
    assert not re.search(r"\0|\u202e|url\(|@import", text)
    names = {name for name, _ in parsed.attributes}
    assert not {"src", "href", "xlink:href", "action", "xmlns"} & names
    assert not [name for name in names if name.startswith("on")]
    assert ("default-src 'none'" in text) == (made != "notebook")


def test_a_notebook_keeps_its_own_style():
    style = REPORT._repr_html_().split("<style>")[1].split("</style>")[0]
    depth, outside = 0, ""
    for c in style:
        depth += {"{": 1, "}": -1}.get(c, 0)
        outside += c if depth == 0 else ""
    assert depth == 0
    rules = [rule for rule in outside.split("}") if rule]
    assert rules == [".tl-sparse", "@media(prefers-color-scheme:dark)"]


def test_a_line_without_a_threshold_is_not_tested():
    line = Finding("minimal", "needless", 0.2, math.nan, at_most=True, why="no target is known")
    page = audit_section(AuditReport("toy", (line,)))
    parsed = Page(page)
    assert "fail" not in page.partition("</style>")[2]
    assert "".join(parsed.text).count("not tested") == 9
    assert 'class="not-tested"' in page
    assert "nan" not in page


def test_an_audit_without_findings_makes_a_section():
    parsed = Page(audit_section(AuditReport("toy", ())))
    assert "".join(parsed.text).count("not tested") == 8


def test_the_page_warns_of_circuits_without_an_audit_and_of_no_others(model, tmp_path):  # noqa: F811
    circuit = some_circuit(model, EDGES)
    place = tmp_path / "page.html"

    def warnings(*arms: Arm) -> int:
        write_page(place, title="t", arms=arms)
        return place.read_text(encoding="utf-8").count("Not audited.")

    audited = Arm(name="audited", circuit=circuit, audit=REPORT)
    bare = Arm(name="bare", circuit=circuit)
    assert warnings(audited) == 0
    assert warnings(bare) == 1
    assert warnings(bare, replace(bare, name="other")) == 1
    assert warnings(audited, bare) == 1
    assert warnings(audited, Arm(name="empty", circuit=some_circuit(model, []))) == 0
    assert warnings(audited, Arm(name="none", note="cannot do the task")) == 0


def same(one: AuditReport, other: AuditReport) -> bool:
    """Whether two reports are equal, with NaN equal to itself."""
    return json.dumps(one.to_dict()) == json.dumps(other.to_dict())


def test_a_report_is_read_back_as_it_was(tmp_path):
    assert same(AuditReport.from_dict(REPORT.to_dict()), REPORT)
    REPORT.save(tmp_path / "audit.json")
    found = AuditReport.load(tmp_path / "audit.json")
    noted = {"audit": {"n_random": 25, HOSTILE: None}, "losses": {"whole": None}, "model": HOSTILE}
    assert found.provenance == noted  # anything may stand there, so null stays null
    assert same(replace(found, provenance=REPORT.provenance), REPORT)
    assert found.findings[0] == REPORT.findings[0]


@pytest.mark.parametrize(("value", "at_most"), [(math.inf, False), (-math.inf, True)])
def test_an_infinite_value_that_holds_still_holds_when_read_back(value, at_most, tmp_path):
    finding = Finding("necessary", "gain", value, 0.5, at_most=at_most, why="half")
    assert finding.holds
    for each in (finding, replace(finding, value=-value), replace(finding, value=NAN)):
        AuditReport("toy", (each,)).save(tmp_path / "audit.json")
        (found,) = AuditReport.load(tmp_path / "audit.json").findings
        assert found.holds == each.holds


def test_verdicts_are_found_anew():
    values = REPORT.to_dict()
    values["verdicts"] = dict.fromkeys(CLAIMS, "holds")
    values["findings"][1]["holds"] = True
    assert AuditReport.from_dict(values).verdicts() == REPORT.verdicts()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"nodes": [], "edges": []}, "no 'task'"),
        ({"task": "toy"}, "no 'findings'"),
        ({"task": "toy", "findings": 3}, "not iterable"),
        ({"task": "toy", "findings": [{"claim": "true"}]}, "there is no claim 'true'"),
        ({"task": "toy", "findings": [], "measures": {"CPR": "high"}}, "'high' is no number"),
        ({"task": "toy", "findings": [], "curves": {"c": [3]}}, "This is no audit"),
        ({"task": "toy", "findings": [], "measures": [3]}, "This is no audit"),
    ],
)
def test_a_file_that_is_no_audit_is_refused(values, what, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=what):
        AuditReport.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"other\.json"):
        AuditReport.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="missing or damaged"):
        AuditReport.load(tmp_path / "none.json")
