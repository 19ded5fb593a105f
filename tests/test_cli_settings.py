"""The command line: settings files, training, tasks of one's own, JSON, completion, progress."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import make_model
from datasets import Dataset, DatasetDict
from test_ablation import whole_circuit
from tqdm import tqdm
from typer.testing import CliRunner

from tl_sparse import Circuit, HookedSparseTransformer, cli, data, tasks
from tl_sparse.bench.settings import KIND_NAMES, SIZES
from tl_sparse.checkpoints import read_json
from tl_sparse.cli import completing
from tl_sparse.cli.failing import in_words
from tl_sparse.cli.speaking import Lines
from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.data.paths import FEW, PathTexts, cut
from tl_sparse.data.sources import Document
from tl_sparse.presets import DEMO_TRAINING, RECIPES
from tl_sparse.pruning import ABLATIONS
from tl_sparse.sweeps import FIGURES, PRESETS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a text of some 20 kB."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "my.txt").write_text("".join(data.generate_programs(45, seed=5))[:20_000])
    monkeypatch.chdir(place)
    monkeypatch.setenv("TL_SPARSE_CACHE", str(tmp_path / "cache"))
    return place


SMALL = "--preset tiny --layers 1 --width 16 --context 16 --vocab 300 --batch-size 4 --quiet"


def run(line: str) -> SimpleNamespace:
    result = CliRunner().invoke(cli.app, line.split(), env={"COLUMNS": "80"})
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


# -- training -------------------------------------------------------------------------------------


def test_training_on_a_text_writes_a_model_that_the_other_commands_take(place):
    done = run(f"train --text my.txt --out mine {SMALL} --tokens 1280 --density 0.5 --seed 3")
    assert done.code == 0, done.err
    model = HookedSparseTransformer.load(place / "mine" / "checkpoint" / "model")
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.n_ctx) == (1, 16, 16)
    assert (model.cfg.d_vocab, model.sparsity.weight_density) == (300, 0.5)
    assert repr(model) in done.out
    assert "Trained on 1,280 tokens" in done.out
    assert "Next: tl-sparse tasks --model mine" in done.err
    shown = run("info mine")
    assert shown.code == 0, shown.err
    assert f"trained on: {model.trained_on[0]}" in shown.out
    numbers = json.loads(run("info mine --json").out)
    assert numbers["sparsity"]["weight_density"] == 0.5
    assert numbers["trained_on"] == list(model.trained_on)


def test_the_settings_of_a_training_stand_in_its_folder_and_make_it_again(place):
    first = run(f"train --text my.txt --out mine {SMALL} --tokens 640 --json")
    assert first.code == 0, first.err
    result = json.loads(first.out)
    kept = read_json(place / "mine" / "settings.json")["train"]
    assert result["settings"] == kept
    assert (kept["text"], kept["width"], kept["density"]) == (["my.txt"], 16, 0.1)
    assert (kept["learning_rate"], kept["bigram"]) == (0.015, True)
    again = run("train --config mine/settings.json --out other --quiet --json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["model_hash"] == result["model_hash"]
    assert json.loads(again.out)["validation_loss"] == result["validation_loss"]


def test_the_same_command_goes_on_with_a_training_that_was_stopped(place, monkeypatch):
    line = f"train --text my.txt {SMALL} --tokens 1920 --json --out "
    whole = json.loads(run(line + "whole").out)
    from tl_sparse.training import TrainingRun

    take_step = TrainingRun.take_step

    def stop_in_the_middle(self: Any) -> None:
        take_step(self)
        if self.step == 11:
            os.kill(os.getpid(), 2)

    monkeypatch.setattr(TrainingRun, "take_step", stop_in_the_middle)
    stopped = run(line + "mine")
    assert stopped.code == 130
    assert (stopped.out, stopped.err.count("\n")) == ("", 1)
    assert "the same command goes on" in stopped.err
    assert read_json(place / "mine" / "checkpoint" / "state.json")["step"] == 11
    half_way = run("info mine")
    assert half_way.code == 0
    assert "was stopped at step 11 of 30: this model is in the middle" in half_way.err
    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    assert json.loads(run(line + "mine").out)["model_hash"] == whole["model_hash"]
    assert json.loads(run(line + "mine").out)["model_hash"] == whole["model_hash"]
    assert "was stopped" not in run("info mine").err


def test_a_run_that_goes_on_past_its_best_loss_says_so(place, monkeypatch):
    from tl_sparse.history import History

    records = ({"step": 1, "tokens": 64, "validation_loss": 2.0, "seconds": 1.0},
               {"step": 2, "tokens": 128, "validation_loss": 3.0, "seconds": 2.0})  # fmt: skip
    monkeypatch.setattr("tl_sparse.training.train", lambda *a, **k: History(records))
    done = run(f"train --text my.txt --out mine {SMALL} --tokens 640")
    assert "The validation loss was 2.000 at 64 tokens and rose since" in done.err


def test_the_recipes_of_the_presets_are_the_demos_and_those_near_it():
    assert RECIPES["demo"].training == DEMO_TRAINING
    assert RECIPES["demo"].shape(1024)["d_model"] == 128
    shape = RECIPES["gpu"].shape(2048, device="meta")
    assert (shape["n_layers"], shape["n_ctx"], shape["device"]) == (4, 256, "meta")
    assert isinstance(RECIPES["tiny"].training, TrainingConfig)


# -- texts by path --------------------------------------------------------------------------------


def test_texts_come_from_files_folders_and_saved_datasets(tmp_path):
    (tmp_path / "some" / "deep").mkdir(parents=True)
    for i in range(FEW):
        (tmp_path / "some" / "deep" / f"{i:02}.txt").write_text(f"text {i}")
    (tmp_path / "some" / "image.png").write_bytes(b"\xff")
    (tmp_path / "notes").write_text("without an ending")
    found = PathTexts([tmp_path / "some", tmp_path / "notes"])
    assert found.n_files == FEW + 1
    assert [d.text for d in found] == [*(f"text {i}" for i in range(FEW)), "without an ending"]
    assert [d.text for d in found] == [d.text for d in found]
    only = PathTexts([tmp_path / "some"], pattern="**/0*.txt")
    assert [d.text for d in only] == [f"text {i}" for i in range(10)]
    Dataset.from_dict({"body": ["a", "b"]}).save_to_disk(str(tmp_path / "rows"))
    rows = PathTexts([tmp_path / "rows"], column="body")
    assert (rows.n_files, [d.text for d in rows]) == (None, ["a", "b"])
    split = DatasetDict({"test": Dataset.from_dict({"text": ["a"]})})
    split.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"has the splits test and no train\. Name the folder"):
        PathTexts([tmp_path / "splits"])


def test_a_few_long_texts_are_cut_into_pieces_that_join_to_the_same_text():
    line = "a word and another\n"
    texts = [Document("one", line * 3000), Document("two", "x" * 5000), Document("three", "short")]
    pieces = cut(texts)
    assert len(pieces) > FEW
    assert "".join(piece.text for piece in pieces) == "".join(text.text for text in texts)
    assert {piece.name for piece in pieces if piece.text == "short"} == {"three"}
    assert all(piece.text.endswith("\n") for piece in pieces if piece.name.startswith("one"))


# -- settings files -------------------------------------------------------------------------------

SETTINGS = {"text": ["my.txt"], "layers": 1, "width": 16, "context": 16, "vocab": 300,
            "batch-size": 4, "preset": "tiny", "tokens": 320, "quiet": True}  # fmt: skip


def as_toml(values: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def test_toml_yaml_and_json_mean_the_same_as_the_flags(place):
    written = {
        "a.toml": as_toml(SETTINGS),
        "b.toml": "[prune]\nseed = 7\n[train]\n" + as_toml(SETTINGS),
        "c.yaml": yaml.safe_dump(SETTINGS),
        "d.yml": yaml.safe_dump({"train": {k.replace("-", "_"): v for k, v in SETTINGS.items()}}),
        "e.json": json.dumps(SETTINGS),
    }
    flags = f"train --text my.txt {SMALL} --tokens 320 --json --out flags"
    expected = json.loads(run(flags).out)
    for name, text in written.items():
        (place / name).write_text(text)
        done = run(f"train --config {name} --out {name[0]} --json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["model_hash"] == expected["model_hash"]
        assert found["settings"] | {"out": ""} == expected["settings"] | {"out": ""}


def test_flags_win_over_a_settings_file_and_null_is_nothing(place):
    settings = SETTINGS | {"seed": 5, "density": None}
    (place / "a.yaml").write_text(yaml.safe_dump(settings))
    done = run("train --config a.yaml --out mine --seed 6 --no-bigram --json")
    assert done.code == 0, done.err
    kept = json.loads(done.out)["settings"]
    assert (kept["seed"], kept["bigram"], kept["density"], kept["tokens"]) == (6, False, 0.1, 320)


def test_lists_in_a_settings_file_join_what_a_flag_joins_by_commas(place, monkeypatch):
    asked = {}

    def chosen_preset(name: str, **values: Any) -> Any:
        asked.update(values)
        raise ValueError("enough")

    module = sys.modules["tl_sparse.cli.compare"]  # the name in the package is the command
    monkeypatch.setattr(module, "chosen_preset", chosen_preset)
    (place / "a.toml").write_text("seeds = [0, 1]\ntasks = ['for_while', 'var_swap']")
    assert run("compare --config a.toml").err == "Error: enough\n"
    wanted = {"seeds": "0,1", "only_tasks": "for_while,var_swap", "targets": None, "sae": True}
    assert asked == wanted


# -- tasks of one's own ---------------------------------------------------------------------------


def everything(model: Any, task: Any, refs: Any, config: PruningConfig, **keywords: Any) -> Circuit:
    """What `prune` would give if nothing could go, at once."""
    losses = {"test": 1.0, "model_test": 1.0}
    target = config.target_loss
    return replace(whole_circuit(model), task=task.name, target_loss=target, losses=losses)


@pytest.fixture
def own(place, quote_corpus, monkeypatch):
    """A model, and pairs of one's own in a file."""
    model = make_model(
        SparsityConfig(weight_density=0.2, activation_density=0.5),
        d_vocab=quote_corpus.d_vocab, n_ctx=64, n_layers=1, positional_embedding_type="none",
        default_prepend_bos=False,
    )  # fmt: skip
    model.set_tokenizer(quote_corpus.tokenizer)
    model.save(place / "model")
    pairs = [{"prompts": [f"print('{i} is", f'print("{i} is'], "answers": ["')", '")']}
             for i in range(60)]  # fmt: skip
    (place / "mine.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    monkeypatch.setattr("tl_sparse.pruning.prune", everything)
    quick = AuditConfig(
        n_random=2, n_subsets=2, n_adversarial_steps=2, n_examples=4, max_edges=2, max_nodes=4
    )
    monkeypatch.setattr("tl_sparse.config.AuditConfig.quick", lambda: quick)
    monkeypatch.setattr("tl_sparse.data.python_corpus", lambda **k: quote_corpus)
    return model


PRUNE = "prune model mine.jsonl --force --target-loss 3 --reference-tokens 64 --quiet --seed 2"


def test_a_circuit_of_ones_own_pairs_is_audited_on_the_same_pairs(own, place):
    done = run(f"{PRUNE} --json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    circuit = Circuit.load(place / "circuit.json")
    assert (result["task"], result["n_edges"]) == ("mine", circuit.n_edges)
    assert result["losses"] == dict(circuit.losses)
    asked = circuit.provenance["command"]["prune"]
    assert result["settings"] == asked
    assert (asked["seed"], asked["target_loss"], asked["ablation"]) == (2, 3.0, "corpus_mean")
    assert (asked["device"], asked["task"], asked["model"]) == ("cpu", "mine.jsonl", "model")
    assert circuit.provenance["task_file"]["path"] == str(place / "mine.jsonl")
    audited = run("audit model circuit.json --quick --quiet --seed 4 --json")
    assert audited.code == 0, audited.err
    report = json.loads(audited.out)
    assert report["task"] == "mine"
    assert report["provenance"]["command"]["audit"]["seed"] == 4
    assert report["provenance"]["task_file"] == circuit.provenance["task_file"]
    assert report["verdicts"] == read_json(place / "audit.json")["verdicts"]


def test_pairs_that_were_moved_are_named_again(own, place):
    assert run(PRUNE).code == 0
    (place / "mine.jsonl").rename(place / "elsewhere.jsonl")
    lost = run("audit model circuit.json --quick --quiet")
    assert (lost.code, "--task-file PATH" in lost.err) == (1, True)
    other = run("audit model circuit.json --quick --quiet --task-file elsewhere.jsonl")
    assert other.code == 1
    assert "found on the task 'mine', and the task given is 'elsewhere'" in other.err
    (place / "there").mkdir()
    (place / "elsewhere.jsonl").rename(place / "there" / "mine.jsonl")
    found = run("audit model circuit.json --quick --quiet --task-file there/mine.jsonl")
    assert found.code == 0, found.err


def test_tasks_shows_ones_own_pairs_and_how_a_model_does_them(own):
    shown = run("tasks mine.jsonl --model model")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("PairTask(mine: 42 train, 6 validation, 12 test pairs")
    assert '-> "\')"' in shown.out
    numbers = json.loads(run("tasks mine.jsonl --model model --json").out)
    assert numbers["n_pairs"] == {"train": 42, "validation": 6, "test": 12, "held_out": 0}
    score = numbers["score"]
    assert f"test loss {score['loss']:.3f}, {score['accuracy']:.1%} right" in shown.out
    listed = json.loads(run("tasks --json").out)
    assert [row["name"] for row in listed] == list(tasks.names())


# -- completion, version, progress ----------------------------------------------------------------


def test_the_words_for_completion_are_the_librarys_own():
    assert tasks.names() == completing.TASKS
    assert tuple(FIGURES) == completing.FIGURES
    assert tuple(PRESETS) == completing.SWEEP_PRESETS
    assert tuple(RECIPES) == completing.TRAIN_PRESETS
    assert completing.ABLATIONS == ABLATIONS
    assert completing.BENCH_KINDS == KIND_NAMES
    assert tuple(SIZES) == completing.BENCH_SIZES


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("tl-sparse prune model sin", ["single_double_quote"]),
        ("tl-sparse tasks for", ["for_while"]),
        ("tl-sparse sweep figure2,fig", ["figure2,figure3"]),
        ("tl-sparse train --preset t", ["tiny"]),
        ("tl-sparse tra", ["train"]),
    ],
)
def test_a_shell_completes_names(words, completed):
    env = {"_TL_SPARSE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    env |= {"COMP_CWORD": str(len(words.split()) - 1), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tl_sparse"]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed


def test_without_a_command_there_is_the_help_in_the_order_of_the_work():
    shown = run("").out
    places = [shown.index(f"│ {command.__name__} ") for command in cli.COMMANDS]
    assert places == sorted(places)
    assert run("--version").out.startswith("tl-sparse")


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.__name__)
def test_every_help_has_an_example(command):
    shown = run(f"{command.__name__} --help")
    assert shown.code == 0
    assert "For example:" in shown.out
    assert f"tl-sparse {command.__name__}" in shown.out


def test_progress_in_a_file_is_lines():
    stream = io.StringIO()
    bar = tqdm(range(3), file=Lines(stream), mininterval=0.0, desc="work", ascii=True)
    for _ in bar:
        pass
    Lines(stream).write("after\n")
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert all(line.startswith("work: ") for line in lines[:-1])
    assert lines[-1] == "after"
    assert "3/3" in lines[-2]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "Out of memory. Take a smaller model or batch, or another device."),
        (ModuleNotFoundError("x", name="distributed"), "The library distributed is not installed"),
        (ValueError("one\ntwo"), "one two"),
        (OSError("without a number"), "without a number"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_of_the_machine_are_put_into_one_line(error, line):
    assert in_words(error).startswith(line)
    assert "\n" not in in_words(error)
