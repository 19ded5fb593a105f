"""The training loop against a plain-torch loop, and its promises: exact density, resume, errors."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import SHAPE, make_model
from torch import Tensor

from tl_sparse import checkpoints, data
from tl_sparse.checkpoints import read_json
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.training import DivergedError, TrainingRun, mean_loss, next_token_loss, train

QUICK = TrainingConfig(n_tokens=12 * 8 * 16, batch_size=8, eval_every=4, n_eval_windows=4)
SPARSE = SparsityConfig(
    weight_density=1 / 8, embedding_density=1 / 2, bias_density=1 / 2, activation_density=1 / 4,
    min_alive=2, bigram_table=True,
)  # fmt: skip


def fresh(
    corpus: data.Corpus, sparsity: SparsityConfig = SPARSE, **shape
) -> HookedSparseTransformer:
    return HookedSparseTransformer(SHAPE | {"d_vocab": corpus.d_vocab} | shape, sparsity=sparsity)


def parameters(model: HookedSparseTransformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def plain_top_k(weight: Tensor, density: float) -> Tensor:
    k = int(density * weight.numel() + 1e-9)
    order = weight.abs().flatten().argsort(descending=True, stable=True)[:k]
    return torch.zeros(weight.numel(), dtype=weight.dtype).scatter(
        0, order, weight.flatten()[order]
    ).reshape(weight.shape)  # fmt: skip


def test_the_recipe_equals_a_plain_torch_loop(corpus):
    """Adam, gradient RMS, sharkfin, annealing, projection and decay, by hand in float64."""
    n = 6
    config = TrainingConfig(n_tokens=n * 4 * 16, batch_size=4, anneal_start=0.0, anneal_stop=0.5,
                            warmup_fraction=1 / 3, learning_rate=0.02)  # fmt: skip
    sparsity = SparsityConfig(weight_density=1 / 4, bigram_table=True)
    model = fresh(corpus, sparsity, dtype=torch.float64)
    oracle = fresh(corpus, sparsity, dtype=torch.float64)
    oracle.reopen_(0)
    train(model, corpus, config, progress=False)

    theta = dict(oracle.named_parameters())
    m = {k: torch.zeros_like(p) for k, p in theta.items()}
    v = {k: torch.zeros_like(p) for k, p in theta.items()}
    for t in range(1, n + 1):
        batch = corpus.train.batch(t - 1, batch_size=4, n_ctx=16, seed=0)
        logits = oracle(batch)
        loss = -logits.log_softmax(-1)[:, :-1].gather(-1, batch[:, 1:, None]).mean()
        gradients = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        total = sum((g**2).sum() for g in gradients.values())
        rms = math.sqrt(float(total) / sum(p.numel() for p in theta.values()))
        density = max(1 / 4, 1 - 3 / 4 * (t / n) / 0.5)
        rate = (
            0.02 * (t / n * 3 if t / n < 1 / 3 else (1 - t / n) / (2 / 3)) * (0.25 / density) ** 0.5
        )
        with torch.no_grad():
            for name, p in theta.items():
                g = gradients[name] / (rms + 1e-5)
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.95 * v[name] + 0.05 * g**2
                p -= rate * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + 0.1)
                if name.startswith("blocks") and ".W_" in name:
                    p.copy_(plain_top_k(p, density))
                if ".W_" in name and "pos_embed" not in name:
                    p -= 0.1 * rate * p
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, theta[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("ranking", ["separate", "joint"])
@pytest.mark.parametrize("anneal", ["linear", "power", "none"])
def test_density_is_exact_after_every_step(corpus, ranking, anneal, monkeypatch):
    sparsity = SparsityConfig(weight_density=0.11, embedding_density=0.3, bias_density=0.4,
                              min_alive=2, qkv_ranking=ranking)  # fmt: skip
    model = fresh(corpus, sparsity)
    config = TrainingConfig(n_tokens=10 * 4 * 16, batch_size=4, anneal=anneal)
    seen = []

    def check(density: float, n_done: int) -> None:
        for block in model.blocks:
            qkv = [block.attn.W_Q, block.attn.W_K, block.attn.W_V]
            groups = [qkv] if ranking == "joint" else [[w] for w in qkv]
            groups += [[block.attn.W_O], [block.mlp.W_in], [block.mlp.W_out]]
            for group in groups:
                size = sum(w.numel() for w in group)
                assert sum(int((w != 0).sum()) for w in group) == int(density * size + 1e-9)
        seen.append(n_done)

    original = HookedSparseTransformer.project_

    def project(self, **densities):
        original(self, **densities)
        if densities.get("weight_density", 1.0) < 1 and self is model:
            check(densities["weight_density"], len(seen))

    monkeypatch.setattr(HookedSparseTransformer, "project_", project)
    train(model, corpus, config, progress=False)
    assert len(seen) >= 9  # every step, but for the first one at density 1
    for name, mask in model.weight_masks.items():
        assert ((model.get_parameter(name) != 0) <= mask).all()


def test_frozen_masks_do_not_regrow(corpus):
    model = fresh(corpus)
    before = {name: mask.clone() for name, mask in model.weight_masks.items()}
    weights = parameters(model)
    train(model, corpus, TrainingConfig(n_tokens=512, batch_size=4, anneal="none", regrow=False),
          progress=False)  # fmt: skip
    assert not torch.equal(
        model.W_in, torch.stack([weights[f"blocks.{i}.mlp.W_in"] for i in (0, 1)])
    )
    for name, mask in before.items():
        assert torch.equal(model.weight_masks[name], mask)
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_fine_tuning_with_regrowth_moves_weights_at_the_same_density(corpus):
    model = fresh(corpus)
    before = {name: mask.clone() for name, mask in model.weight_masks.items()}
    config = TrainingConfig(n_tokens=2048, batch_size=4, anneal="none", sharkfin=False)
    train(model, corpus, config, progress=False)
    moved = [n for n, m in before.items() if not torch.equal(model.weight_masks[n], m)]
    assert "blocks.0.mlp.W_in" in moved
    for name, mask in model.weight_masks.items():
        assert mask.sum() == before[name].sum()
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_a_model_remembers_the_corpora_that_it_was_trained_on(corpus, tmp_path):
    model = fresh(corpus)
    config = TrainingConfig(n_tokens=64, batch_size=4, anneal="none")
    train(model, corpus, config, folder=tmp_path / "run", progress=False)
    train(model, corpus, config, progress=False)
    assert model.trained_on == (corpus.hash,)
    saved = HookedSparseTransformer.load(tmp_path / "run/checkpoint/model")
    assert saved.trained_on == (corpus.hash,)


def test_training_lowers_the_validation_loss_and_logs_it(corpus, tmp_path):
    model = fresh(corpus)
    windows = corpus.validation.windows(16, 4)
    before = mean_loss(model, windows)
    config = TrainingConfig(n_tokens=60 * 16 * 16, batch_size=16, eval_every=20, n_eval_windows=4)
    history = train(model, corpus, config, folder=tmp_path / "run", progress=False)
    assert history.validation_loss < before - 1
    assert history.validation_loss == mean_loss(model, windows)
    assert history.column("step") == [20, 40, 60]
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert tuple(lines) == history.records == History.load(tmp_path / "run").records
    last = lines[-1]
    assert last["nonzero"]["blocks.0.mlp.W_in"] == 32 * 64 // 8
    assert last["weight_density"] == 1 / 8
    assert len(last["dead_neurons"]) == 2
    assert last["gradient_rms"] > 0


def test_gradient_accumulation_gives_the_same_run(corpus):
    one, four = (fresh(corpus, SparsityConfig(), dtype=torch.float64) for _ in range(2))
    train(one, corpus, QUICK, progress=False)
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"gradient_accumulation": 4})
    train(four, corpus, config, progress=False)
    for name, p in one.named_parameters():
        torch.testing.assert_close(four.get_parameter(name), p, rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_trains_and_leaves_a_float32_model(corpus, precision):
    model = fresh(corpus)
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"precision": precision})
    history = train(model, corpus, config, progress=False)
    assert math.isfinite(history.validation_loss)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model)  # accelerate's wrapper is gone


def test_the_two_sudden_drops_of_embeddings(corpus):
    model = fresh(corpus)
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"anneal_embeddings": "sudden"})
    history = train(model, corpus, config, progress=False)
    full = corpus.d_vocab * 32
    assert [r["nonzero"]["embed.W_E"] for r in history.records] == [full // 2] * 3


LONG = TrainingConfig(
    n_tokens=120 * 8 * 16, batch_size=8, eval_every=50, checkpoint_every=5, n_eval_windows=4
)

RUN = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_training import {config}, fresh
from tl_sparse import data, train
torch.set_num_threads(1)
texts = list(data.generate_programs(150, seed=5))
corpus = data.corpus(texts, vocab_size=400, cache_dir={cache!r}, progress=False)
train(fresh(corpus), corpus, {config}, folder={folder!r}, progress=False)
print("trained")
"""


def code(config: str, folder: Path, cache: Path) -> str:
    tests = str(Path(__file__).parent)
    return RUN.format(config=config, folder=str(folder), cache=str(cache), tests=tests)


def start(folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code("LONG", folder, cache)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def wait_for_checkpoint(folder: Path, at_least: int) -> None:
    for _ in range(600):
        state = folder / "checkpoint" / "state.json"
        try:
            if json.loads(state.read_text())["step"] >= at_least:
                return
        except (OSError, json.JSONDecodeError):
            pass
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_to_the_same_bits(how, corpus, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(broken, tmp_path / "cache")
    wait_for_checkpoint(broken, 10)
    os.kill(process.pid, how)
    assert process.wait() != 0
    expected = fresh(corpus)
    train(expected, corpus, LONG, folder=whole, progress=False)
    assert 10 <= read_json(broken / "checkpoint/state.json")["step"] < 120
    HookedSparseTransformer.load(broken / "checkpoint/model")  # a usable model
    model = fresh(corpus)
    history = train(model, corpus, LONG, folder=broken, progress=False)
    for name, parameter in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    for name, mask in expected.weight_masks.items():
        assert torch.equal(model.weight_masks[name], mask)

    def without_times(records):
        return [{k: v for k, v in record.items() if "second" not in k} for record in records]

    assert without_times(history.records) == without_times(History.load(whole).records)


def test_a_finished_run_returns_at_once_and_another_config_is_refused(corpus, tmp_path):
    model = fresh(corpus)
    first = train(model, corpus, QUICK, folder=tmp_path, progress=False)
    again = fresh(corpus)
    assert train(again, corpus, QUICK, folder=tmp_path, progress=False) == first
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in model.named_parameters())
    other = TrainingConfig.from_dict(QUICK.to_dict() | {"seed": 1})
    with pytest.raises(ValueError, match="holds a run with another config"):
        train(fresh(corpus), corpus, other, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a run with another sparsity"):
        train(fresh(corpus, SparsityConfig()), corpus, QUICK, folder=tmp_path, progress=False)


def test_a_loss_that_diverges_stops_with_what_to_try_and_keeps_the_checkpoint(corpus, tmp_path):
    model = fresh(corpus)
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"checkpoint_every": 2})

    def poison(tensor, hook):
        return tensor * float("nan") if poisoned.pop(0) else tensor

    poisoned = [False] * 5 + [True] * 10  # steps 0-3, the validation at 4, then NaN
    model.add_hook("blocks.1.hook_resid_post", poison)
    with pytest.raises(
        DivergedError, match=r"at step 4 of 12\. Try a lower learning_rate.*is kept in"
    ):
        train(model, corpus, config, folder=tmp_path, progress=False)
    assert read_json(tmp_path / "checkpoint/state.json")["step"] == 4
    HookedSparseTransformer.load(tmp_path / "checkpoint/model")


def test_a_damaged_checkpoint_is_refused_by_name(corpus, tmp_path):
    train(fresh(corpus), corpus, QUICK, folder=tmp_path, progress=False)
    moments = tmp_path / "checkpoint/moments.safetensors"
    whole = moments.read_bytes()
    moments.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"moments.safetensors is damaged or was cut short"):
        train(fresh(corpus), corpus, QUICK, folder=tmp_path, progress=False)


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(corpus, tmp_path, monkeypatch):
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"checkpoint_every": 4})
    calls = []

    def no_space(path, tensors):
        calls.append(path)
        if len(calls) > 2:  # model and moments of the first checkpoint went well
            raise OSError(28, "No space left on device")
        return original(path, tensors)

    original = checkpoints.write_tensors
    monkeypatch.setattr(checkpoints, "write_tensors", no_space)
    monkeypatch.setattr("tl_sparse.training.saving.write_tensors", no_space)
    with pytest.raises(OSError, match="No space left"):
        train(fresh(corpus), corpus, config, folder=tmp_path, progress=False)
    assert read_json(tmp_path / "checkpoint/state.json")["step"] == 4
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "log.jsonl"}
    monkeypatch.undo()
    history = train(fresh(corpus), corpus, config, folder=tmp_path, progress=False)
    assert history.column("step") == [4, 8, 12]


def test_a_corpus_that_does_not_fit_the_model_is_refused(corpus):
    with pytest.raises(ValueError, match=r"Build the model with d_vocab=corpus\.d_vocab"):
        train(make_model(d_vocab=10), corpus, QUICK, progress=False)
    long = TrainingConfig.from_dict(QUICK.to_dict() | {"n_ctx": 64})
    with pytest.raises(ValueError, match="n_ctx=64 is longer than the model's own, 16"):
        train(fresh(corpus), corpus, long, progress=False)


def test_a_tracker_that_is_not_installed_is_refused(corpus, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"trackers": ("wandb",)})
    with pytest.raises(ValueError, match=r"pip install tl-sparse\[track\]"):
        train(fresh(corpus), corpus, config, progress=False)


def test_tensorboard_needs_a_folder(corpus, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"trackers": ("tensorboard",)})
    with pytest.raises(ValueError, match="give train a folder"):
        train(fresh(corpus), corpus, config, progress=False)


def test_a_batch_that_processes_cannot_share_is_refused(corpus, monkeypatch):
    monkeypatch.setattr("tl_sparse.training.run.Accelerator.num_processes", 3)
    with pytest.raises(ValueError, match="multiple of the number of processes, got 8 and 3"):
        train(fresh(corpus), corpus, QUICK, progress=False)


def test_a_second_run_of_one_model_has_the_precision_that_it_asks_for(corpus):
    """accelerate marks a model that it prepared and does not put autocast on it a second time."""
    model, seen = fresh(corpus), set()
    config = TrainingConfig.from_dict(QUICK.to_dict() | {"precision": "bf16"})
    for _ in range(2):
        seen.clear()

        def note(activation, hook):
            seen.add(activation.dtype)

        with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_pre", note)]):
            train(model, corpus, config, progress=False)
        assert torch.bfloat16 in seen


def test_a_run_is_on_its_model_s_device_whatever_an_earlier_run_was_on(corpus):
    AcceleratorState._reset_state(True)
    PartialState(cpu=False).device = torch.device("meta")  # as a run on a GPU leaves its own
    train(fresh(corpus), corpus, QUICK, progress=False)
    assert str(PartialState().device) == "cpu"


@pytest.mark.parametrize("regrow_every", [1, 3])
def test_between_regrowths_masks_stay_and_zeroed_weights_get_no_gradient(corpus, regrow_every):
    """Against the definition, seen from outside: masks, gradients and their norm, step by step."""
    config = TrainingConfig.from_dict(
        QUICK.to_dict() | {"anneal": "none", "regrow_every": regrow_every}
    )
    model = fresh(corpus)
    run = TrainingRun(model, corpus, config, None, False)
    masks: list[dict[str, torch.Tensor]] = []
    dead: list[float] = []
    whole: list[float] = []

    def look(optimizer, args, kwargs):
        named = dict(model.named_parameters())
        dead.append(
            sum(
                float(torch.as_tensor(named[n].grad)[~m].abs().sum())
                for n, m in model.weight_masks.items()
            )
        )
        grads = [p.grad.flatten() for p in named.values() if p.grad is not None]
        whole.append(float(torch.cat(grads).square().mean().sqrt()))

    handle = run.optimizer.register_step_pre_hook(look)
    with run.accelerated():
        for _ in range(7):
            masks.append({name: mask.clone() for name, mask in model.weight_masks.items()})
            run.take_step()
    handle.remove()
    masks.append({name: mask.clone() for name, mask in model.weight_masks.items()})
    for step in range(7):
        regrows = step % regrow_every == 0
        same = all(torch.equal(masks[step][n], masks[step + 1][n]) for n in model.weight_masks)
        assert same == (not regrows), step
        assert (dead[step] > 0) == regrows
        if regrows:
            assert whole[step] == pytest.approx(1, abs=1e-2)
        else:  # what is left of a gradient of RMS 1 when the part of zeroed weights is missing
            assert 0.01 < whole[step] < 0.99
    for name, mask in model.weight_masks.items():
        assert not model.get_parameter(name)[~mask].any()


def test_next_token_loss_leaves_the_last_logits_out():
    logits, tokens = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    by_hand = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    torch.testing.assert_close(next_token_loss(logits, tokens), by_hand)
