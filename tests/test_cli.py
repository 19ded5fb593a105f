"""The command line: what it prints, what it writes, how it fails."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from test_ablation import whole_circuit
from typer.testing import CliRunner

from tl_sparse import cli, data, gate, tasks
from tl_sparse.auditing import AuditReport, audit
from tl_sparse.circuit import Circuit
from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig

TASK = "single_double_quote"


def run(*arguments) -> SimpleNamespace:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "100"})
    texts = (result.output, result.stdout, result.stderr)
    text, out, err = (" ".join(text.split()) for text in texts)
    return SimpleNamespace(code=result.exit_code, text=text, out=out, err=err)


@pytest.fixture(scope="module")
def corpus(quote_corpus, texts, tmp_path_factory):
    cache = tmp_path_factory.mktemp("corpora")
    tokenizer = quote_corpus.tokenizer
    made = data.corpus(texts, tokenizer=tokenizer, cache_dir=cache, progress=False)
    return made, cache


@pytest.fixture(scope="module")
def model(corpus):
    sparse = SparsityConfig(weight_density=0.2, activation_density=0.5)
    model = make_model(
        sparse,
        d_vocab=corpus[0].d_vocab,
        n_ctx=64,
        n_layers=1,
        positional_embedding_type="none",
        default_prepend_bos=False,
    )
    model.set_tokenizer(corpus[0].tokenizer)
    model.trained_on = (corpus[0].hash,)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "model"
    model.save(place)
    return place


@pytest.fixture
def quick(monkeypatch):
    """Few steps, so that pruning ends in a second."""
    few = partial(PruningConfig, n_steps=4, n_edge_steps=4, drop_one=False)
    monkeypatch.setattr("tl_sparse.config.PruningConfig", few)


def test_a_models_tasks_are_scored_as_by_hand(model):
    served, refused = gate.task_scores(model, [TASK, "ioi_text"])
    task = tasks.get(TASK, tokenizer=model.tokenizer)
    n_right, losses = 0, []
    for pair in task.pairs["test"]:
        for side in (0, 1):
            tokens = model.tokenizer.encode(pair.prompts[side], add_special_tokens=False)
            ids = [task.answer_ids[pair.answers[i]] for i in (side, 1 - side)]
            with torch.no_grad():
                right, wrong = model(torch.tensor([tokens]))[0, -1, ids].tolist()
            n_right += right > wrong
            losses.append(torch.tensor(wrong - right).exp().log1p().item())
    assert served.accuracy == pytest.approx(n_right / len(losses))
    assert served.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert (refused.loss, refused.passes) == (None, False)
    assert refused.why_not == "finds fewer than 8 of the words to repeat as single tokens"
    assert served.accuracy is not None
    (easy,) = gate.task_scores(model, [TASK], min_accuracy=served.accuracy)
    (hard,) = gate.task_scores(model, [TASK], min_accuracy=served.accuracy + 1e-6)
    assert (easy.passes, hard.passes) == (True, False)


def test_the_list_of_tasks_with_a_model_shows_its_scores(folder, model, monkeypatch):
    (score,) = gate.task_scores(model, [TASK])
    monkeypatch.setattr("tl_sparse.tasks.names", lambda: (TASK, "ioi_text"))
    shown = run("tasks", "--model", folder)
    assert shown.code == 0
    assert f"{TASK} {score.loss:.3f} {score.accuracy:.1%} fails" in shown.text
    assert "ioi_text: not for this tokenizer; finds fewer than 8 of the words" in shown.text
    assert shown.out.endswith("0 of 1 pass the gate")
    assert "Next: train longer or wider" in shown.err
    one = run("tasks", TASK, "--model", folder)
    assert "fails the gate" in one.out
    assert "Next: train longer or wider" in one.err
    missing = run("tasks", "--model", folder / "nothing")
    assert (missing.code, missing.text[:6]) == (1, "Error:")


def test_pruning_from_the_command_line_writes_the_circuit_of_the_call(
    folder, model, corpus, quick, tmp_path
):
    out = tmp_path / "deep" / "c.json"
    options = ["--corpus-cache", corpus[1], "--reference-tokens", 512, "--quiet", "--out", out]
    refused = run("prune", folder, TASK, *options, "--target-loss", 3)
    assert refused.code == 1
    assert "less than the gate of 90%" in refused.text
    assert "(Here: --force.)" in refused.text
    assert not out.exists()
    beside = ("--surroundings", 1)
    found = run(
        "prune", folder, TASK, *options, "--target-loss", 3, "--seed", 5, "--force", *beside
    )
    assert found.code == 0, found.text
    circuit = Circuit.load(out)
    assert "not known to be in" not in found.text
    assert circuit.provenance["references"] == {"n_tokens": 512, "corpus": corpus[0].hash}
    assert (circuit.target_loss, circuit.forced, circuit.task) == (3, True, TASK)
    settings = circuit.provenance["pruning"]
    assert (settings["seed"], settings["n_surroundings"]) == (5, 1)
    assert repr(circuit) in found.text
    assert circuit.n_nodes == 0
    assert "Next: ask for a lower --target-loss, or something else" in found.text
    resampled = run("prune", folder, TASK, *options, "--target-loss", 3, "--force", "--ablation",
                    "resample_corpus")  # fmt: skip
    assert resampled.code == 0, resampled.text
    assert Circuit.load(out).ablation == "resample_corpus"
    wrong = run("prune", folder, TASK, *options, "--ablation", "mean")
    assert wrong.code == 1
    assert "There is no ablation 'mean'" in wrong.text
    unreachable = run("prune", folder, TASK, *options, "--target-loss", 1e-9, "--force")
    assert unreachable.code == 1
    assert "reaches a loss of 1e-09" in unreachable.text


def test_the_default_text_stands_in_where_the_training_text_is_not_known(
    folder, corpus, quick, tmp_path, monkeypatch
):
    asked = {}

    def python_corpus(**arguments):
        asked.update(arguments)
        return corpus[0]

    monkeypatch.setattr("tl_sparse.data.python_corpus", python_corpus)
    options = ["--corpus-cache", tmp_path, "--reference-tokens", 64, "--quiet", "--force"]
    found = run("prune", folder, TASK, *options, "--target-loss", 3, "--out", tmp_path / "c.json")
    assert "means are taken over the default Python text" in found.text
    assert asked["cache_dir"] == tmp_path
    assert asked["tokenizer"].get_vocab() == corpus[0].tokenizer.get_vocab()
    assert (tmp_path / "c.json").exists()


def test_auditing_from_the_command_line_writes_the_report_of_the_call(
    folder, model, corpus, tmp_path, monkeypatch
):
    place, out = ["--corpus-cache", corpus[1], "--quiet"], tmp_path / "audit.json"
    replace(whole_circuit(model), task=TASK, target_loss=1.0).save(tmp_path / "c.json")
    few = AuditConfig(
        n_random=2, n_subsets=2, n_adversarial_steps=2, n_examples=4, max_edges=2, max_nodes=4
    )
    monkeypatch.setattr("tl_sparse.config.AuditConfig.quick", lambda: few)
    found = run("audit", folder, tmp_path / "c.json", *place, "--quick", "--seed", 3, "--out", out)
    assert found.code == 0, found.text
    task = tasks.get(TASK, tokenizer=model.tokenizer, max_tokens=model.cfg.n_ctx)
    circuit, config = Circuit.load(tmp_path / "c.json"), replace(few, seed=3)
    report = audit(model, circuit, task, corpus[0], config, progress=False)
    assert json.loads(out.read_text())["verdicts"] == report.verdicts()
    assert "better than chance: NOT TESTED." in found.text
    page = tmp_path / "page.html"
    monkeypatch.setattr("tl_sparse.auditing.audit", lambda *_, **__: report)
    run("audit", folder, tmp_path / "c.json", *place, "--quick", "--seed", 3, "--out", page)
    assert f"Audit of the circuit for {TASK}" in page.read_text(encoding="utf-8")
    # Given as text: what is not finite is equal to itself there.
    assert str(AuditReport.load(tmp_path / "page.json")) == str(AuditReport.load(out))
    missing = run("audit", folder, tmp_path / "none.json", *place)
    assert (missing.code, missing.text[:6]) == (1, "Error:")


def test_stopping_keeps_what_there_is(folder, corpus, quick, tmp_path, monkeypatch):
    out = tmp_path / "c.json"
    options = ["--corpus-cache", corpus[1], "--reference-tokens", 64, "--quiet", "--force"]
    options += ["--out", out]

    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_sparse.pruning.prune", stop)
    stopped = run("prune", folder, TASK, *options)
    assert stopped.code == 130
    assert "nothing was written" in stopped.text
    assert not out.exists()
    circuit = Circuit(nodes=(), edges=(), references={}, task=TASK, model_hash="-")
    kept = replace(circuit, provenance={"interrupted": True})
    monkeypatch.setattr("tl_sparse.pruning.prune", lambda *a, **k: kept)
    assert "the smallest circuit so far" in run("prune", folder, TASK, *options).text
    assert Circuit.load(out).provenance["interrupted"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", TASK], "Error: "),
        (["MODEL", "whale"], "There is no task 'whale'"),
        (["MODEL", "ioi_text"], "can't be made for this tokenizer"),
        (["MODEL", TASK, "--target-loss", "-1"], "target_loss"),
    ],
)
def test_what_can_not_be_pruned_is_an_error_in_one_line(arguments, message, folder):
    shown = run("prune", *[folder if a == "MODEL" else a for a in arguments])
    assert shown.code == 1
    assert message in shown.text
    assert "Traceback" not in shown.text


def test_the_help_says_what_a_user_needs_first():
    shown = run("prune", "--help").text
    for words in ("Ctrl-C", "--corpus-cache demo/corpus", "tl-sparse tasks --model MODEL"):
        assert words in shown
