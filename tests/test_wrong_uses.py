"""Wrong uses of the command line: one line that helps, the right exit code, nothing damaged."""

import errno
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_model
from test_ablation import whole_circuit
from typer.testing import CliRunner

from tl_sparse import cli, data
from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer

ROOT = Path(__file__).resolve().parents[1]
TASK = "single_double_quote"
PAIR = {"prompts": ["x = (", "x = ["], "answers": [")", "]"]}

USAGE = [
    ("trian", "No such command 'trian'. Did you mean 'train'?"),
    ("--bogus tasks", "No such option: --bogus"),
    ("prune", "Missing argument 'model'"),
    ("prune model", "Missing argument 'task'"),
    ("audit model", "Missing argument 'circuit'"),
    ("train", "Missing option '--out'"),
    ("sweep", "Missing argument 'figures'"),
    (f"prune model {TASK} --target 0.1", "No such option: --target"),
    (f"prune model {TASK} --target-loss low", "Invalid value for '--target-loss'"),
    (f"prune model {TASK} --seed -1", "Invalid value for '--seed'"),
    (f"prune model {TASK} --seed 1.5", "Invalid value for '--seed'"),
    (f"prune model {TASK} --reference-tokens 0", "Invalid value for '--reference-tokens'"),
    ("train --out new --layers 0", "Invalid value for '--layers'"),
    ("train --out new --tokens many", "Invalid value for '--tokens'"),
    ("compare --workers -1", "Invalid value for '--workers'"),
    ("info model again", "unexpected extra argument"),
    ("train --out new --config nowhere.toml", "nowhere.toml: No such file"),
    ("train --out new --config book.txt", "ends in .toml, .yaml or .json, got book.txt"),
    ("train --config broken.toml", "broken.toml can't be read"),
    ("train --config broken.yaml", "broken.yaml can't be read"),
    ("train --config list.json", "list.json holds no keys"),
    (
        "train --config unknown.toml",
        "unknown.toml has 'lauers', and train knows activation",
    ),
    ("train --config table.toml", "table.toml has 'trian', and train knows"),
    ("train --config wrong_type.toml", "'--layers': Input should be a valid integer"),
    ("train --config wrong_type.toml", "(in wrong_type.toml)"),
    ("train --config switch.yaml", "switch.yaml: quiet is true or false, got 'yes please'"),
    ("train --config no_switch.yaml", "no_switch.yaml: layers takes a number or words, got True"),
    ("prune model x --config range.json", "(in range.json)"),
]
"""Exit code 2."""

ERRORS = [
    # models
    (f"prune nowhere {TASK}", "no folder nowhere to load a model from. `tl-sparse train --out"),
    (f"prune book.txt {TASK}", "book.txt is a file, and a model is a folder"),
    (f"prune pages {TASK}", "config.json is missing or damaged"),
    (f"prune cut {TASK}", "model.safetensors is damaged or was cut short"),
    (f"prune scribbled {TASK}", "config.json is missing or damaged"),
    (f"prune bare {TASK}", "The model has no tokenizer, and tasks are made for one. Save it with"),
    ("tasks --model nowhere", "There is no folder nowhere to load a model from"),
    ("tasks --model bare", "The model has no tokenizer"),
    ("info nowhere", "There is no folder nowhere to load a model from"),
    # tasks
    ("prune model whale", "There is no task 'whale'. There are: single_double_quote"),
    ("tasks whale", "There is no task 'whale'"),
    ("prune model ioi_text", "can't be made for this tokenizer"),
    (f"prune model {TASK}", "less than the gate of 90%"),
    (f"prune model {TASK}", "(Here: --force.)"),
    ("prune model gone.jsonl", "There is no file gone.jsonl of pairs"),
    ("tasks gone.jsonl", "There is no file gone.jsonl of pairs"),
    ("prune model broken.jsonl", "broken.jsonl, line 1: this is not JSON"),
    ("prune model fields.jsonl", "line 1: a pair has the fields 'prompts' and 'answers'"),
    ("prune model one.jsonl", "The task one has 1 pairs in 1 groups"),
    ("prune model latin.jsonl", "latin.jsonl is not UTF-8"),
    ("prune model for_while.jsonl", "has the name of one of our tasks"),
    # values
    (f"prune model {TASK} --target-loss -1", "target_loss is a positive finite number, got -1"),
    (f"prune model {TASK} --target-loss nan", "target_loss is a positive finite number, got nan"),
    (f"prune model {TASK} --ablation mean", "There is no ablation 'mean'; there are: corpus_mean"),
    # devices
    (f"prune model {TASK} --device tpu", "A device is cpu, cuda, cuda:1 (a number) or mps"),
    (f"prune model {TASK} --device cuda:x", "A device is cpu, cuda, cuda:1 (a number) or mps"),
    ("train --out new --device cuda:99", "--device cuda:99: this torch"),
    # places to write to
    (f"prune model {TASK} --out pages", "--out is a file's name, and pages is a folder"),
    (f"prune model {TASK} --out book.txt/c.json", "book.txt is a file, and a folder is needed"),
    (f"prune model {TASK} --out /proc/c.json", "/proc: "),
    ("train --text book.txt --out book.txt", "book.txt is a file, and a folder is needed"),
    ("train --text book.txt --out /proc/model", "/proc: "),
    ("train --text book.txt --out pages", "pages is not empty and holds no run of tl-sparse train"),
    ("train --text book.txt --out run --seed 3", "--seed (0 there, 3 now). Give another --out"),
    ("train --text book.txt --out run --seed 3", "run holds a model with another"),
    ("demo --folder book.txt", "book.txt is a file, and a folder is needed"),
    ("sweep figure3 --folder book.txt", "'book.txt' is a file"),
    ("compare --folder book.txt", "book.txt is a file, and a folder is needed"),
    ("bench --out book.txt", "out is a file whose name ends in .json"),
    # circuits
    ("audit model nowhere.json", "No circuit could be read from nowhere.json"),
    ("audit model book.txt", "This is not a circuit file, or it was cut short"),
    ("audit model list.json", "This JSON is not a circuit of tl_sparse"),
    ("audit model theirs.json", "was found in another model, or the weights have changed"),
    ("audit model moved.json", "which is gone. Name the file: --task-file PATH"),
    ("audit model changed.json", "was changed since the circuit was found on its pairs"),
    ("audit model strange.json", "There is no task 'whale'"),
    (
        "audit model mine.json --out mine.json",
        "mine.json would be written over, and the command reads",
    ),
    (
        "audit model mine.json --out mine.html",
        "mine.json would be written over, and the command reads",
    ),
    (
        "prune model one.jsonl --out one.jsonl",
        "one.jsonl would be written over, and the command reads",
    ),
    (
        "view model mine.json --out mine.json",
        "mine.json would be written over, and the command reads",
    ),
    ("audit model mine.json --out pages", "--out is a file's name, and pages is a folder"),
    ("audit model mine.json --task-file gone.jsonl", "There is no file gone.jsonl of pairs"),
    # texts
    ("train --out new --text nowhere", "There is no file or folder nowhere to read text from"),
    ("train --out new --text blobs", "No file in blobs ends as text does"),
    ("train --out new --text pages --pattern *.log", "No file in pages matches '*.log'"),
    ("train --out new --text empty.txt", "A corpus needs text, but the source has none"),
    ("train --out new --text latin.jsonl", "latin.jsonl has a byte 0xe9"),
    ("train --out new --text short.txt --context 500", "Take more text, or a smaller --context"),
    # settings of a training
    ("train --out new --preset huge", "A preset is one of tiny, demo, gpu; got 'huge'"),
    ("train --out new --density 0", "weight_density is a fraction of kept entries in (0, 1]"),
    ("train --out new --activation-density 2", "activation_density is a fraction of kept entries"),
    ("train --out new --learning-rate nan", "learning_rate is a positive finite number, got nan"),
    ("train --out new --precision half", "precision is one of 'float32', 'bf16', 'fp16'"),
    ("train --out new --text book.txt --vocab 10", "vocab_size must be at least 257"),
    # sweeps and measurements
    ("sweep figure9", "A figure is one of figure2, figure3"),
    ("sweep ,", "Name a figure: figure2, figure3"),
    ("sweep figure3 --preset huge", "A preset is one of tiny, laptop, gpu, paper; got 'huge'"),
    ("compare --seeds a", "seeds are whole numbers joined by commas, got 'a'"),
    ("compare --targets 0", "targets are losses in nats joined by commas, got '0'"),
    ("compare --tasks tea", "There is no task 'tea'"),
    ("bench --sizes huge", "sizes takes names out of tiny, small"),
    ("bench --device tpu", "device is one of 'auto', 'cpu', 'cuda'"),
]
"""Exit code 1."""


@pytest.fixture(scope="session")
def tokenizer():
    return data.train_tokenizer(data.generate_programs(500, seed=3), vocab_size=1024)


def write_circuits(place: Path, model: HookedSparseTransformer) -> None:
    circuit = replace(whole_circuit(model), task=TASK, target_loss=1.0)
    noted = {"path": str(place / "changed.jsonl"), "sha256": "0" * 64}
    moved = {"path": str(place / "gone.jsonl"), "sha256": "0" * 64}
    circuit.save(place / "mine.json")
    replace(circuit, model_hash="0" * 64).save(place / "theirs.json")
    replace(circuit, task="whale").save(place / "strange.json")
    replace(circuit, task="changed", provenance={"task_file": noted}).save(place / "changed.json")
    replace(circuit, task="gone", provenance={"task_file": moved}).save(place / "moved.json")


def write_texts(place: Path) -> None:
    (place / "pages").mkdir()
    (place / "blobs").mkdir()
    texts = {
        "book.txt": "".join(data.generate_programs(60, seed=5)),
        "pages/page.md": "a page\n",
        "blobs/blob.bin": "a blob",
        "short.txt": "a line\n" * 20 + "another\n" * 60,
        "empty.txt": "",
        "broken.toml": "layers = = 2",
        "broken.yaml": "a: [1",
        "list.json": "[1, 2]",
        "unknown.toml": "out = 'new'\nlauers = 3",
        "table.toml": "[trian]\nlayers = 3",
        "wrong_type.toml": "[train]\nout = 'new'\nlayers = 'two'",
        "switch.yaml": "quiet: yes please",
        "no_switch.yaml": "layers: true",
        "range.json": json.dumps({"prune": {"seed": -3}}),
        "broken.jsonl": "pairs",
        "fields.jsonl": json.dumps({"prompts": ["a", "b"]}),
        "one.jsonl": json.dumps(PAIR),
        "changed.jsonl": json.dumps(PAIR),
        "for_while.jsonl": json.dumps(PAIR),
    }
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8")
    (place / "latin.jsonl").write_bytes(json.dumps(PAIR).encode() + b"\n\xe9\n")


@pytest.fixture(scope="session")
def place(tokenizer, tmp_path_factory):
    """A folder with a model, whole and broken ones, circuits, texts and settings files."""
    place = tmp_path_factory.mktemp("wrong") / "place"
    place.mkdir()
    sparse = SparsityConfig(weight_density=0.2, activation_density=0.5)
    shape: dict[str, Any] = {"d_vocab": len(tokenizer), "n_ctx": 64, "n_layers": 1}
    shape |= {"positional_embedding_type": "none", "default_prepend_bos": False}
    model = make_model(sparse, **shape)
    model.save(place / "bare")
    model.set_tokenizer(tokenizer)
    for name in ("model", "cut", "scribbled"):
        model.save(place / name)
    tensors = place / "cut" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    (place / "scribbled" / "config.json").write_text("{")
    write_circuits(place, model)
    write_texts(place)
    train = ["train", "--text", "book.txt", "--out", "run", *tiny()]
    before = Path.cwd()
    os.chdir(place)
    try:
        done = command(shlex.join(train), place)
    finally:
        os.chdir(before)
    assert done.code == 0, done.err
    return place


def tiny() -> list[str]:
    """Flags of a training that takes a second."""
    size = "--preset tiny --layers 1 --width 16 --context 16 --vocab 300 --tokens 1024 --quiet"
    return [str(word) for word in size.split()]


def command(line: str, place: Path) -> SimpleNamespace:
    env = {"COLUMNS": "80", "TL_SPARSE_CACHE": str(place.parent / "cache")}
    result = CliRunner().invoke(cli.app, shlex.split(line), env=env)
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def contents(place: Path) -> dict[str, str]:
    """Every file and folder, with the hash of what it holds."""
    return {
        str(path.relative_to(place)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        )
        for path in sorted(place.rglob("*"))
    }


def refused(line: str, code: int, says: str, place: Path) -> None:
    before = contents(place)
    done = command(line, place)
    assert done.code == code, (done.out, done.err)
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("Error: ")
    assert says.lower() in lines[0].lower()  # Typers differ in how they write a name
    assert "Traceback" not in done.out + done.err
    assert done.out == ""
    assert contents(place) == before


@pytest.mark.parametrize(("line", "says"), USAGE)
def test_a_wrong_command_line_is_one_line_that_names_the_help(line, says, place, monkeypatch):
    monkeypatch.chdir(place)
    refused(line, 2, says, place)


@pytest.mark.parametrize(("line", "says"), ERRORS)
def test_a_wrong_use_is_one_line_with_the_remedy(line, says, place, monkeypatch):
    if "cuda:99" in line and torch.cuda.device_count() > 99:
        pytest.skip("this machine has a hundred GPUs")
    monkeypatch.chdir(place)
    small = "train --quiet --preset tiny --tokens 1024 "  # what is not refused ends soon
    refused(line.replace("train ", small, 1), 1, says, place)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device. Free some space, or write to another disk"),
        (errno.EACCES, "Permission denied. Choose a place that you may read and write."),
        (errno.EROFS, "Read-only file system. Choose a place that can be written."),
    ],
)
def test_a_disk_that_can_not_be_written_loses_nothing(number, says, place, monkeypatch):
    """The training is whole in memory by then; what the folder held before is what it holds."""

    def fail(path, *arguments, **keywords):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.chdir(place)
    monkeypatch.setattr("tl_sparse.training.saving.write_tensors", fail)
    done = command(shlex.join(["train", "--text", "book.txt", "--out", "full", *tiny()]), place)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert says in done.err
    kept = sorted(path.name for path in (place / "full").iterdir())
    assert kept == ["log.jsonl", "settings.json"]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    again = command(shlex.join(["train", "--text", "book.txt", "--out", "full", *tiny()]), place)
    assert again.code == 0, again.err
    HookedSparseTransformer.load(place / "full" / "checkpoint" / "model")
    for path in sorted((place / "full").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (place / "full").rmdir()


def test_a_full_disk_at_the_end_of_a_pruning_is_one_line(place, monkeypatch, tokenizer):
    before = contents(place)

    def fail(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    circuit = replace(whole_circuit(HookedSparseTransformer.load(place / "model")), task=TASK)
    monkeypatch.chdir(place)
    monkeypatch.setattr("tl_sparse.pruning.prune", lambda *a, **k: circuit)
    monkeypatch.setattr("tl_sparse.circuit.write_text", fail)
    done = command(f"prune model {TASK} --force --ablation zero --out mine.json", place)
    assert done.code == 1
    assert done.err.startswith("Error: mine.json: No space left on device. Free some space")
    assert done.err.count("\n") == 1
    assert contents(place) == before


def started(*arguments: str, place: Path, **keywords: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own, where signals and pipes are real."""
    paths = {"PYTHONPATH": str(ROOT), "TL_SPARSE_CACHE": str(place.parent / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "tl_sparse", *arguments], cwd=place, env={**os.environ, **paths},
        text=True, **keywords,
    )  # fmt: skip


def test_ctrl_c_in_a_training_keeps_it_and_the_same_command_goes_on(place, tmp_path, monkeypatch):
    out = tmp_path / "run"
    size = [*tiny(), "--tokens", str(2**21)]
    process = started(
        "train", "--text", "book.txt", "--out", str(out), *size, place=place,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _ in range(600):
        if (out / "log.jsonl").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert shown == ""
    assert said.startswith("Stopped. What was done is kept in")
    assert "the same command goes on" in said
    assert said.count("\n") == 1
    monkeypatch.chdir(place)
    assert HookedSparseTransformer.load(out / "checkpoint" / "model").tokenizer is not None
    step = json.loads((out / "checkpoint" / "state.json").read_text())["step"]
    assert 0 < step < 2**21 / 128
    other = command(shlex.join(["train", "--text", "book.txt", "--out", str(out), *tiny()]), place)
    assert other.code == 1
    assert "another --tokens (2097152 there, 1024 now)" in other.err


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(place):
    process = started("--help", place=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    assert process.wait(timeout=60) in (0, 1)


def test_a_mistake_of_ours_is_one_line_too_and_debug_shows_where(place, monkeypatch):
    def break_down(*arguments, **keywords):
        raise TypeError("no such\nthing")

    monkeypatch.setattr("tl_sparse.model.HookedSparseTransformer.load", break_down)
    monkeypatch.chdir(place)
    done = command("info model", place)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("Error: unexpected TypeError: no such thing. This is a mistake in")
    shown = command("--debug info model", place)
    assert shown.code == 1
    assert "Traceback (most recent call last)" in shown.err
    assert "in break_down" in shown.err
    assert shown.err.splitlines()[-1].startswith("Error: unexpected TypeError")


def test_debug_shows_where_an_expected_error_came_from(place, monkeypatch):
    monkeypatch.chdir(place)
    done = command("--debug info nowhere", place)
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("Error: There is no folder nowhere")
