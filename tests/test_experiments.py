"""The scripts that make the results pages, run at their smallest."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from tl_sparse.auditing import AuditReport, Finding

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def imported(name: str):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def run(monkeypatch):
    """Run a script's main, as from the command line."""

    def run_script(name: str, *args: str) -> None:
        monkeypatch.syspath_prepend(EXPERIMENTS)  # some of them import others
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
        imported(name).main()

    return run_script


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.py")))
def test_every_script_says_what_it_makes(name, run, capsys):
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    about = imported(name).__doc__
    assert about is not None
    assert " ".join(about.splitlines()[0].split()) in said


@pytest.mark.filterwarnings("ignore::UserWarning")  # SAELens' own
def test_saes_of_four_architectures_are_scored_on_both_arms(run, tmp_path):
    page = tmp_path / "saes.md"
    marks = "<!-- table: made by experiments/saes_on_both_arms.py -->", "<!-- end of table -->"
    page.write_text(f"# SAEs\n\n{marks[0]}\nold\n{marks[1]}\n\nWords.\n")
    places = ["--folder", str(tmp_path / "run"), "--out", str(tmp_path / "saes.json")]
    run("saes_on_both_arms", "--tiny", "--seeds", "0", *places)
    rows = json.loads((tmp_path / "saes.json").read_text())["rows"]
    arms = dict.fromkeys(row["arm"] for row in rows)
    assert len(arms) == 2
    for arm in arms:
        mine = {row["SAE"]: row for row in rows if row["arm"] == arm}
        assert list(mine) == ["TopK", "BatchTopK", "JumpReLU", "AbsTopK"]
        assert mine["AbsTopK"]["l0"] == 16
        assert len({row["loss"] for row in mine.values()}) == 1
        assert all(row["loss"] < row["loss_zeroed"] for row in mine.values())
    written = page.read_text()
    assert "old" not in written
    assert written.count("\n| sparse | ") == 4
    assert written.endswith("<!-- end of table -->\n\nWords.\n")


def test_saes_are_swept_spliced_and_pruned_like_channels(run, tmp_path):
    sweep = ["--architectures", "topk", "--expansions", "2", "--l0s", "4", "8", "--l0", "8"]
    places = ["--demo", str(tmp_path / "demo"), "--folder", str(tmp_path / "saes")]
    out = str(tmp_path / "out.json")
    run("sae_arm", "--tiny", "--no-audit", *sweep, *places, "--out", out)
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["sweep"]) == 2
    assert [row["arm"] for row in found["circuits"]] == ["channels", "latents"]
    channels, latents = found["circuits"]
    whole = channels["losses"]["model_test"]
    assert abs(latents["losses"]["model_test"] - whole) < 1e-4
    assert "| all at once | " in (tmp_path / "out.md").read_text()


def test_the_page_on_audits_is_written_from_the_folder(tmp_path, monkeypatch):
    script = imported("audit_results")
    page, folder = tmp_path / "audits.md", tmp_path / "run"
    page.write_text(f"Before.\n\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\n\nAfter.\n")
    monkeypatch.setattr(script, "PAGE", page)

    def put(seed: int, where: str, name: str, *, edges: int | None, gain: float) -> None:
        place = folder / f"seed{seed}" / where
        place.mkdir(parents=True, exist_ok=True)
        row = {"task": name, "accuracy": 0.97}
        row |= {"best": gain} if edges is None else {"edges": edges, "losses": {"test": 0.125}}
        (place / f"{name}.json").write_text(json.dumps(row))
        found = Finding("robust", "gain beside", gain, 0.5, at_most=False, why="half")
        if edges is not None:
            AuditReport(name, (found,)).save(place / f"{name}.audit.json")

    for seed in (0, 1):
        (folder / f"seed{seed}").mkdir(parents=True)
        losses = json.dumps({"sparse": 3.1 + seed, "dense": 3.2})
        (folder / f"seed{seed}" / "losses.json").write_text(losses)
        put(seed, "circuits of sparse", "var_if", edges=7 + seed, gain=0.4 + 0.3 * seed)
        put(seed, "circuits of dense", "var_if", edges=90, gain=0.2)
        put(seed, "circuits of sparse", "nonsense_quotes", edges=None, gain=0.37)
        put(seed, "circuits of sparse", "single_double_quote", edges=5, gain=0.9)
        put(seed, "stochastic ablation", "single_double_quote", edges=6, gain=0.95)
    script.write_results(folder, [0, 1], "abc1234")
    lines = page.read_text().splitlines()
    assert "old" not in lines
    assert lines[0] == "Before."
    assert lines[-1] == "After."
    assert any(line.startswith("Commit abc1234; seeds 0, 1; ") for line in lines)
    assert "| var_if | 7, 8 | 0.125, 0.125 | 90, 90 | 0.125, 0.125 |" in lines
    assert "| nonsense_quotes | none (0.37), none (0.37) |  | -, - |  |" in lines
    row = next(line for line in lines if line.startswith("| var_if | sparse |"))
    assert "1 of 2" in row
    # both sparse tasks in one: 0.4, 0.7, 0.9, 0.9
    assert "| robust | gain beside | 0.8 (0.4 to 0.9); 3 of 4 | 0.2 (0.2 to 0.2); 0 of 2 |" in lines
    changed = next(line for line in lines if line.startswith("|  | edges |"))
    assert changed.startswith("|  | edges | 5, 5 | 6, 6 |")
    saved = json.loads(page.with_suffix(".json").read_text())
    assert saved["1"]["circuits of sparse"]["var_if"]["edges"] == 8


def test_the_page_on_circuits_is_written_from_the_rows(tmp_path, monkeypatch):
    script = imported("task_results")
    page = tmp_path / "circuits.md"
    page.write_text(f"Before.\n\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\n\nAfter.\n")
    monkeypatch.setattr(script, "PAGE", page)
    pruned = {"nodes": 5, "circuit loss": 0.1, "model loss": 0.05, "seconds": 9, "accuracy": 1.0}
    sizes = [(16, 8, 4, 160), (100, 50, 25, 500)]
    names = ("stage one", "stage two", "clean-up", "attribution")
    rows = [
        {"seed": 0, "arm": "sparse", "task": f"t{i}"} | pruned | dict(zip(names, n, strict=True))
        for i, n in enumerate(sizes)
    ]
    rows.append(rows[0] | {"task": "easy", "nodes": 0} | dict.fromkeys(names[:3], 0))
    note = {"task": "hard", "accuracy": 0.52, "model loss": 0.7, "note": "can't do it"}
    rows.append({"seed": 0, "arm": "sparse"} | note)
    compiled = {"seed": 0, "size": {"weights": 9}, "prompts": 1024, "float64": 1e-14}
    compiled |= {"float32": 2e-6, "close calls": 3, "equations": "x += 1"}
    found = {"commit": "abc", "seeds": [0], "hardware": "2 cores", "rows": rows}
    methods = {"learned": [[0, 0.7], [9, 0.1]], "random": [[0, 0.7], [900, 0.1]]}
    found["curves"] = [{"seed": 0, "arm": "sparse", "methods": methods}]
    script.write_results(found | {"losses": {"0 sparse": 2.8}, "compiled": [compiled]})
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    # by hand: sqrt(4 x 25) edges, a quarter of stage one, sqrt(1/10 x 1/5) of attribution's
    assert "| 0 | sparse | 2.800 | 3 | 2 | 10.000 | 0.250 | 0.141 |" in text
    assert "| t1 | 1.000 | 0.050 | 0.100 | 5 | 100 | 50 | 25 | 500 | 9 |" in text
    assert "by the last token alone: easy." in text
    assert "<title>random: 900 edges, 0.1</title>" in text
    assert "hard (52.0%; can't do it)" in text
    assert "over 1,024 prompts: 1.0e-14 in float64" in text
    assert json.loads(page.with_suffix(".json").read_text())["rows"][1]["clean-up"] == 25


@pytest.mark.parametrize("name", ["larger_pair", "wider"])
def test_the_pages_of_what_a_gpu_trained_say_what_their_cells_say(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    script = importlib.import_module(name)
    page = tmp_path / "page.md"
    page.write_bytes(script.PAGE.read_bytes())
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--page", str(page)])
    script.main()
    assert page.read_text("utf-8") == script.PAGE.read_text("utf-8")


def test_steps_are_timed_with_the_kernel_and_without(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    script = importlib.import_module("gpu_steps")
    kept = script.functional._kernel_for
    times = script.measure(script.TINY[0], torch.device("cpu"), 1)
    assert all(time > 0 for time in times)
    assert script.functional._kernel_for is kept
