"""The examples, run as a reader would run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tl_sparse import data
from tl_sparse.circuit import Circuit
from tl_sparse.history import History

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_a_folder_of_text_becomes_a_circuit(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    for i, text in enumerate(data.generate_programs(600, seed=11)):
        (code / f"{i}.py").write_text(text)
    out = tmp_path / "run"
    command = [sys.executable, str(EXAMPLES / "train_and_prune.py"), str(code), "--tiny"]
    environment = {"TL_SPARSE_CACHE": str(tmp_path / "cache"), "PATH": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert Circuit.load(out / "circuit.json").task == "single_double_quote"
    assert History.load(out).n_tokens >= 40_000
    assert "block weights nonzero" in run.stdout


def test_saes_of_four_architectures_are_scored_on_both_arms(tmp_path):
    page = tmp_path / "saes.md"
    marks = "<!-- table: made by examples/saes_on_both_arms.py -->", "<!-- end of table -->"
    page.write_text(f"# SAEs\n\n{marks[0]}\nold\n{marks[1]}\n\nWords.\n")
    command = [sys.executable, str(EXAMPLES / "saes_on_both_arms.py"), "--tiny", "--seeds", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, "--folder", str(tmp_path / "run"), "--out", str(tmp_path / "saes.json")],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
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


def test_the_results_script_names_its_stages():
    command = [sys.executable, str(EXAMPLES / "quote_results.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0
    assert "--stages" in run.stdout
