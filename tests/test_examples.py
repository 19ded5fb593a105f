"""The examples, run as a reader would run them."""

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
