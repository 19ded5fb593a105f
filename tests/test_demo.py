"""The demo at its smallest: stages that are kept, arms that fail the gate, the command line."""

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model
from test_report import some_circuit
from test_viewer import EDGES, Letters, letter_task
from typer.testing import CliRunner

from tl_sparse.auditing import CLAIMS, AuditReport
from tl_sparse.circuit import Circuit
from tl_sparse.cli import app
from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.demo import ArmResult, ArmSpec, DemoSettings, pages, run_demo
from tl_sparse.demo import run as demo
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer

TRAINING = TrainingConfig(n_tokens=16 * 8 * 128, batch_size=8, eval_every=8, n_eval_windows=8)
TINY = DemoSettings(
    full=True,
    matched_width=24,
    n_characters=600_000,
    width=32,
    sparsity=SparsityConfig(weight_density=0.1, activation_density=0.25, bigram_table=True),
    sparse_training=TRAINING,
    dense_training=TRAINING,
    pruning=PruningConfig(
        n_steps=4, n_edge_steps=4, drop_one=False, batch_size=8, target_loss=0.9, min_accuracy=0.0
    ),
    max_viewed_edges=0,
    n_reference_tokens=2048,
    audit=AuditConfig(
        n_random=2,
        n_subsets=2,
        n_adversarial_steps=1,
        n_examples=4,
        max_edges=2,
        max_nodes=4,
        batch_size=4,
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, lines = tmp_path_factory.mktemp("demo") / "demo", []
    run_demo(folder, TINY, progress=False, say=lines.append)
    return folder, lines


def test_the_demo_leaves_models_circuits_a_table_and_a_page(finished):
    folder, lines = finished
    for arm in ("sparse", "dense", "width24"):
        model = HookedSparseTransformer.load(folder / arm / "checkpoint/model")
        assert model.cfg.d_model == (24 if arm == "width24" else 32)
        Circuit.load(folder / arm / "circuit.json")
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == [
        "sparse",
        "dense, equal width",
        "dense, equal loss (width 24)",
    ]
    assert all(row["task loss, circuit"] <= 1 and row["nodes"] >= 0 for row in rows)
    assert any(line.startswith("train sparse: ") for line in lines)
    assert any("validation loss" in line for line in lines)


def test_the_circuits_are_audited_in_the_page_the_table_and_the_words(finished):
    folder, lines = finished
    summary = json.loads((folder / "summary.json").read_text())
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert any(row["nodes"] for row in summary["rows"])
    for arm, row in zip(("sparse", "dense", "width24"), summary["rows"], strict=True):
        assert any(line.startswith(f"audit {row['arm']}: ") for line in lines) == bool(row["nodes"])
        if row["nodes"]:
            report = AuditReport.load(folder / arm / "audit.json")
            verdicts = report.verdicts()
            assert summary["verdicts"][arm] == verdicts
            tested = [each for each in verdicts.values() if each != "not tested"]
            assert row["audit"] == f"{tested.count('holds')} of {len(tested)} claims hold"
            assert all(html.escape(finding.name) in page for finding in report.findings)
    assert "Not audited." not in page


def test_the_closing_lines_name_the_claims_that_fail(finished):
    folder, lines = finished
    first = AuditReport.load(folder / "sparse/audit.json")
    verdicts = first.verdicts()
    failing = [f"  {claim}: {CLAIMS[claim]}" for claim in CLAIMS if verdicts[claim] == "fails"]
    assert failing
    start = next(i for i, line in enumerate(lines) if line.startswith("The audit of the sparse"))
    said = lines[start + 1 : start + 1 + len(failing)]
    assert said == failing
    assert lines[start + 1 + len(failing)] == "Not tested: better than chance, stable."
    assert not any("not audited" in line for line in lines)


def test_without_audits_the_demo_says_so(finished):
    folder, _ = finished
    lines: list[str] = []
    results = run_demo(folder, replace(TINY, audit=None), progress=False, say=lines.append)
    assert [result.audit for result in results] == [None] * 3
    assert any(line.startswith("These circuits are not audited") for line in lines)
    assert not any("claims hold" in line for line in lines)
    assert "Not audited." in (folder / "index.html").read_text(encoding="utf-8")


def test_an_interrupted_audit_leaves_no_half_and_is_done_at_the_next_run(
    finished, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(finished[0], tmp_path / "demo"))
    assert TINY.audit is not None
    other = replace(TINY, audit=replace(TINY.audit, n_random=3))
    before = (folder / "sparse/audit.json").read_bytes()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "audit", stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(folder, other, progress=False)
    assert (folder / "sparse/audit.json").read_bytes() == before
    run_demo(folder, other, progress=False)
    asked = AuditReport.load(folder / "sparse/audit.json").provenance["audit"]
    assert (asked["n_random"], asked["seed"]) == (3, TINY.seed)


def test_a_second_run_opens_what_is_there(finished, monkeypatch):
    folder, _ = finished
    before = (folder / "sparse/circuit.json").read_bytes()

    def never(*args, **kwargs):
        raise AssertionError("a stage was done twice")

    monkeypatch.setattr(demo, "references", never)
    monkeypatch.setattr(demo, "prune", never)
    monkeypatch.setattr(demo, "audit", never)
    run_demo(folder, TINY, progress=False)
    assert (folder / "sparse/circuit.json").read_bytes() == before


def test_an_arm_that_cannot_do_the_task_is_shown_so_and_left_out_of_ratios(finished):
    folder, _ = finished
    lines: list[str] = []
    strict = replace(TINY, pruning=replace(TINY.pruning, min_accuracy=1.0))
    results = run_demo(folder, strict, progress=False, say=lines.append)
    assert {result.note for result in results} == {"cannot do the task"}
    assert not any("times as many edges" in line for line in lines)
    assert "cannot do the task" in (folder / "index.html").read_text()


def test_arms_are_compared_at_the_smallest_target_that_all_reach(finished):
    folder, _ = finished
    lines: list[str] = []
    hard = replace(TINY, pruning=replace(TINY.pruning, target_loss=1e-9, drop_one=False))
    results = run_demo(folder, hard, progress=False, say=lines.append)
    targets = {result.circuit.target_loss for result in results if result.circuit is not None}
    assert len(targets) == 1
    assert targets.pop() > 0.1
    assert sum(" at 0." in line for line in lines) >= len(results)


def test_another_recipe_in_the_same_folder_is_refused(finished):
    folder, _ = finished
    other = replace(TINY, sparse_training=replace(TRAINING, learning_rate=0.5))
    with pytest.raises(ValueError, match="holds a demo with another sparse_training"):
        run_demo(folder, other, progress=False)


def test_a_quick_run_goes_through_every_stage_and_says_that_it_is_no_result(tmp_path, monkeypatch):
    quick = DemoSettings.quick(seed=3)
    assert quick.seed == 3
    less = replace(TRAINING, n_tokens=4 * 8 * 128)
    tiny = replace(quick, n_characters=600_000, sparse_training=less, dense_training=less)
    monkeypatch.setattr(DemoSettings, "quick", lambda *, seed: replace(tiny, seed=seed))
    arguments = ["demo", "--quick", "--quiet", "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    said = " ".join(done.output.split())
    assert done.exit_code == 0, said
    assert "A smoke run, to see that the program works, and no result." in said
    page = (tmp_path / "quick/index.html").read_text(encoding="utf-8")
    assert page.count("A smoke run, to see that the program works, and no result.") == 1
    rows = json.loads((tmp_path / "quick/summary.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["sparse", "dense, equal width"]


def arm_of(name: str, n_edges: int) -> ArmResult:
    model: Any = make_model(None, n_ctx=16)
    model.tokenizer = Letters()
    spec = ArmSpec(name, f"the {name} one", 16, SparsityConfig(), TRAINING)
    found = some_circuit(model, EDGES[:n_edges], task="letters", target_loss=0.3)
    return ArmResult(spec, model, History(()), found)


def test_the_page_to_click_through_has_two_circuits_and_is_made_once(tmp_path, monkeypatch):
    arms = [arm_of("first", 4), arm_of("large", 6), arm_of("last", 3)]

    def write(**how: Any) -> dict[str, str]:
        how = {"max_edges": 5, "progress": False} | how
        return pages.write_viewer_page(tmp_path, arms, letter_task(), None, **how)

    viewed = write()
    page = (tmp_path / "circuit.html").read_text(encoding="utf-8")
    assert list(viewed) == ["first", "last"]
    assert "the first one and the last one" in page
    assert "the large one" not in page
    (tmp_path / "summary.json").write_text(json.dumps({"viewed": viewed}))
    with monkeypatch.context() as patch:
        patch.setattr(pages.viewer, "scene", None)
        assert write() == viewed
    arms[0] = arm_of("first", 3)
    assert write() != viewed
    assert (tmp_path / "circuit.html").read_text(encoding="utf-8") != page
    assert write(max_edges=0) == {}
    assert not (tmp_path / "circuit.html").exists()


def test_the_command_line_teaches_and_reports_errors_in_one_line(finished, tmp_path):
    folder, _ = finished
    runner = CliRunner()
    help_text = " ".join(runner.invoke(app, ["demo", "--help"]).output.split())
    assert "Ctrl-C loses nothing" in help_text
    assert "audit tries to prove it wrong" in help_text
    shown = runner.invoke(app, ["info", str(folder / "sparse/checkpoint/model")])
    assert "blocks.0.mlp.W_in" in shown.output
    wrong = runner.invoke(app, ["info", str(tmp_path / "nothing")])
    assert wrong.exit_code == 1
    assert "There is no folder" in wrong.output
    refused = runner.invoke(app, ["demo", "--folder", str(folder), "--quiet"])
    assert refused.exit_code == 1
    assert "holds a demo with another n_characters, width" in refused.output
    assert "single_double_quote" in runner.invoke(app, ["tasks"]).output
