"""The examples, run as a reader would run them, at their smallest size."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tl_sparse import data, zoo
from tl_sparse.auditing import AuditReport
from tl_sparse.capability import bits_per_byte
from tl_sparse.circuit import Circuit
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.tokenizer import tokenizer_hash

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes",
    "2", "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example with a cache of its own in an empty folder, and give what it prints."""
    monkeypatch.setenv("TL_SPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run_example(example: str, *args: str | Path) -> str:
        script = [
            str(EXAMPLES / example),
            "--tiny",
            *map(str, args),
            "--out",
            str(tmp_path / "out"),
        ]
        monkeypatch.setattr(sys, "argv", script)
        capsys.readouterr()
        runpy.run_path(script[0], run_name="__main__")
        return capsys.readouterr().out

    return run_example


def launch(folder: Path, example: str) -> str:
    """Run an example in two processes, with a cache of its own, and give what it prints."""
    script = [*ACCELERATE, str(EXAMPLES / example), "--tiny", "--out", str(folder / "out")]
    environment = {
        "TL_SPARSE_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf"), "PATH": "",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, env=environment, timeout=120,
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(pattern: str, said: str) -> list[float]:
    """The numbers that a line of the output has in the places of a pattern."""
    found = re.search(pattern, said)
    assert found, f"{pattern} is not in:\n{said}"
    return [float(number.replace(",", "")) for number in found.groups()]


def test_text_of_ones_own_becomes_a_model_that_predicts_it_as_well_as_is_said(run, tmp_path):
    text = tmp_path / "notes"
    text.mkdir()
    for i, program in enumerate(data.generate_programs(600, seed=11)):
        (text / f"{i}.md").write_text(program)
    said = run("own_text.py", text, "--pattern", "*.md")
    (bits,) = numbers(r"the model +(\d\.\d+)", said)
    model = HookedSparseTransformer.load(tmp_path / "out/checkpoint/model")
    for name in ("blocks.0.mlp.W_in", "blocks.1.attn.W_O"):
        assert 0 < (model.get_parameter(name) != 0).float().mean() <= 0.02
    corpus = data.corpus(
        data.PathTexts([text], pattern="*.md"), tokenizer=model.tokenizer, max_tokens=100_000,
        cache_dir=tmp_path / "again", progress=False,
    )  # fmt: skip
    n_windows = corpus.validation.n_tokens // model.cfg.n_ctx
    again = bits_per_byte(model, corpus, n_windows=n_windows, progress=False)
    assert bits == pytest.approx(again.per_byte, abs=1e-3)
    losses = History.load(tmp_path / "out").column("validation_loss")
    assert losses[-1] < losses[0]


def test_a_dataset_and_a_tokenizer_of_ones_own_end_up_in_the_model(run, tmp_path):
    rows = [{"n": i, "body": text} for i, text in enumerate(data.generate_programs(300, seed=5))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run("own_dataset.py", path, "--column", "body")
    assert "['12', ' files'" not in said
    assert "'1', '2', " in said
    model = HookedSparseTransformer.load(tmp_path / "out/checkpoint/model")
    mine = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    assert model.tokenizer is not None
    assert tokenizer_hash(model.tokenizer) == tokenizer_hash(mine)
    (bits,) = numbers(r"(\d\.\d+) bits a byte", said)
    assert 0.5 < bits < 4


def test_a_file_of_pairs_becomes_an_audited_circuit_and_a_page(run, tmp_path):
    said = run("own_task.py")
    (accuracy,) = numbers(r"Accuracy on the test pairs (\d+)%", said)
    assert accuracy >= 90
    circuit = Circuit.load(tmp_path / "out/circuit.json")
    assert circuit.task == "pairs"
    assert circuit.losses["test"] < 0.3
    assert AuditReport.load(tmp_path / "out/audit.json").task == "pairs"
    assert "<title>" in (tmp_path / "out/circuit.html").read_text()


def test_with_frozen_masks_the_loss_falls_and_no_weight_changes_place(run, tmp_path):
    said = run("frozen_masks.py")
    before, after = numbers(r"new text: (\d\.\d+) before, (\d\.\d+) after", said)
    assert after < before - 0.05
    assert "; 0 that were zero are not any more" in said
    tuned = HookedSparseTransformer.load(tmp_path / "out")
    original = zoo.load("python-tiny").sparse
    for name, mask in original.weight_masks.items():
        mine, theirs = tuned.get_parameter(name), original.get_parameter(name)
        assert not (mine != 0)[~mask].any(), name
        assert torch.equal(mine, theirs) == (theirs.count_nonzero() == 0), name


def test_two_processes_of_accelerate_train_the_model_of_one(tmp_path, monkeypatch):
    said = launch(tmp_path, "multi_gpu.py")
    assert said.count("2 processes on CPUs") == 1
    monkeypatch.setenv("TL_SPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["multi_gpu.py", "--tiny", "--out", str(tmp_path / "one")])
    runpy.run_path(str(EXAMPLES / "multi_gpu.py"), run_name="__main__")
    two, one = History.load(tmp_path / "out"), History.load(tmp_path / "one")
    assert len(one.records) > 1
    for name in ("loss", "validation_loss"):
        assert two.column(name) == pytest.approx(one.column(name), rel=1e-4)


def test_every_example_is_on_the_page_with_its_time_and_runs_here():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    page, tests = (ROOT / "docs/examples.md").read_text(), Path(__file__).read_text()
    for script in scripts:
        assert re.search(rf"^\| `{script}` \| .* \| \d+ s \| \d+ s \|$", page, re.MULTILINE), script
        assert re.search(rf'(run\(|launch\(tmp_path, )"{script}"', tests), script
