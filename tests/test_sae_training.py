"""SAEs for all sites of a model: what is trained, kept, scored and chosen."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coded import coded_sites
from conftest import make_model
from sae_lens import AbsTopKSAE, JumpReLUSAE, TopKSAE

from tl_sparse.circuit import Site
from tl_sparse.config import SparsityConfig
from tl_sparse.data import Corpus
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.sae_arm import (
    ArmScores,
    SAESettings,
    SweepCell,
    choose,
    load_saes,
    score_saes,
    scores_table,
    splice,
    sweep_saes,
    sweep_table,
    train_saes,
)
from tl_sparse.sae_arm.scores import markdown
from tl_sparse.sae_arm.training import activations
from tl_sparse.sites import model_hash, site_map

SMALL = SAESettings(expansion=4, l0=4, n_windows=200, batch_size=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def model() -> HookedSparseTransformer:
    shape: dict[str, Any] = {"n_layers": 1, "d_model": 16, "d_mlp": 24, "d_vocab": 400}
    return make_model(SparsityConfig(bigram_table=True), **shape)


@pytest.fixture(scope="module")
def trained(
    model: HookedSparseTransformer, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[Site, Any]]:
    folder = tmp_path_factory.mktemp("saes")
    return folder, train_saes(model, corpus, folder, SMALL, progress=False)


def test_there_is_an_sae_for_every_read_write_and_layer_of_neurons(model, trained):
    _, saes = trained
    assert list(saes) == [info.site for info in coded_sites(model)]
    for info in coded_sites(model):
        sae = saes[info.site]
        assert type(sae) is TopKSAE
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.k) == (info.width, 4 * info.width, 4)
        assert sae.cfg.metadata.hook_name == info.hook_name
        assert sae.cfg.metadata.tl_sparse_model_hash == model_hash(model)


def test_training_lowers_the_error(model, corpus, trained):
    """Against the same SAE before it has seen anything but one batch."""
    _, saes = trained
    for info in coded_sites(model)[:3]:
        rows = next(activations(model, info, corpus.validation.windows(16, 8), 100))
        errors = [
            (rows - sae(rows)).square().sum() / (rows - rows.mean(0)).square().sum()
            for sae in (saes[info.site], untrained(model, corpus, info))
        ]
        assert errors[0] < 0.8 * errors[1]


def untrained(model: Any, corpus: Corpus, info: Any) -> Any:
    from tl_sparse.sae_arm.training import train_sae

    return train_sae(model, corpus, info, replace(SMALL, n_windows=4, learning_rate=1e-9))


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    model, corpus, trained, tmp_path, monkeypatch
):
    folder, saes = trained
    shutil.copytree(folder, tmp_path / "half")
    for place in ("0.mlp_in", "0.mlp_out"):
        shutil.rmtree(tmp_path / "half" / place)
    with pytest.raises(ValueError, match=r"no SAE for 0\.mlp_in, 0\.mlp_out yet"):
        load_saes(tmp_path / "half")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = train_saes(model, corpus, tmp_path / "half", SMALL, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    for site, sae in saes.items():
        for name, tensor in sae.state_dict().items():
            assert torch.equal(again[site].state_dict()[name], tensor), (site, name)
    monkeypatch.setattr("tl_sparse.sae_arm.training.train_sae", None)  # nothing left to train
    assert list(train_saes(model, corpus, tmp_path / "half", SMALL, progress=False)) == list(saes)
    assert list(load_saes(tmp_path / "half")) == list(saes)


def test_an_exception_leaves_no_half_sae(model, corpus, tmp_path, monkeypatch):
    from sae_lens import TrainingSAE

    def save_half(sae: Any, path: Path) -> None:
        (path / "cfg.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingSAE, "save_inference_model", save_half)
    with pytest.raises(KeyboardInterrupt):
        train_saes(model, corpus, tmp_path, SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_folder_of_other_saes_is_refused(model, corpus, trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="holds SAEs of other settings"):
        train_saes(model, corpus, folder, replace(SMALL, l0=3), progress=False)
    other = make_model(SparsityConfig(), n_layers=1, d_model=16, d_mlp=24, d_vocab=400)
    with pytest.raises(ValueError, match="holds SAEs of other model"):
        train_saes(other, corpus, folder, SMALL, progress=False)
    with pytest.raises(ValueError, match="no SAEs of train_saes"):
        load_saes(tmp_path)
    whole = shutil.copytree(folder, tmp_path / "saes")
    weights = next(whole.glob("0.attn_in/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"The SAE in .*0\.attn_in is damaged"):
        load_saes(whole)
    shutil.rmtree(whole / "0.attn_in")
    for text, message in (("{}", "names no sites"), ('{"sites": ["0.', "missing or damaged")):
        (whole / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_saes(whole)
    with pytest.raises(ValueError, match="trained on another model"):
        splice(other, load_saes(folder))


def test_more_latents_on_than_there_are_is_refused(model, corpus, tmp_path):
    with pytest.raises(ValueError, match=r"0\.attn_in would have 16 latents, fewer than l0=17"):
        train_saes(model, corpus, tmp_path, replace(SMALL, expansion=1, l0=17), progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "gated"),
        ("expansion", 0),
        ("l0", 1.5),
        ("n_windows", 0),
        ("learning_rate", float("nan")),
        ("sites", ("q",)),
        ("sites", ()),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        SAESettings(**{field: value})


@pytest.mark.parametrize(
    ("architecture", "loaded"),
    [("batchtopk", JumpReLUSAE), ("jumprelu", JumpReLUSAE), ("abstopk", AbsTopKSAE)],
)
def test_other_architectures_train_and_splice(architecture, loaded, model, corpus, tmp_path):
    settings = replace(SMALL, architecture=architecture, sites=("mlp_out",), n_windows=8)
    saes = train_saes(model, corpus, tmp_path, settings, progress=False)
    assert [type(sae) for sae in saes.values()] == [loaded]
    tokens = corpus.validation.windows(16, 2)
    spliced = splice(model, saes)
    assert site_map(spliced)[Site(0, "mlp_out")].width == 4 * 16 + 1
    torch.testing.assert_close(spliced(tokens), model(tokens), rtol=0, atol=1e-4)


def test_a_site_that_is_always_zero_is_named(model, corpus, tmp_path):
    silent = deepcopy(model)
    with torch.no_grad():
        silent.blocks[0].mlp.W_out.zero_()
        silent.blocks[0].mlp.b_out.zero_()
    settings = replace(SMALL, sites=("mlp_out",), n_windows=8)
    with pytest.raises(ValueError, match=r"0\.mlp_out is zero at every token"):
        train_saes(silent, corpus, tmp_path, settings, progress=False)


def test_settings_that_differ_have_names_that_differ():
    changes = ({}, {"n_windows": 8}, {"learning_rate": 0.01}, {"batch_size": 7}, {"seed": 1},
               {"sites": ("mlp_out",)}, {"sites": ("mlp_out", "attn_in")})  # fmt: skip
    names = [replace(SAESettings(), **change).name for change in changes]
    assert len(set(names)) == len(names)
    assert names[0] == "topk-x8-l0-16-seed0"


def test_activations_are_those_of_the_windows_mixed_and_again(model, corpus):
    (info,) = (i for i in coded_sites(model) if i.site.name == "mlp_in")
    windows = corpus.train.windows(16, 6)
    _, cache = model.run_with_cache(windows)
    rows = cache[info.hook_name].flatten(0, 1)
    batches = activations(model, info, windows, 32, seed=1)
    first = torch.cat([next(batches) for _ in range(3)])
    second = torch.cat([next(batches) for _ in range(3)])

    def in_order(some: torch.Tensor) -> torch.Tensor:
        return some[some[:, 0].argsort()]

    torch.testing.assert_close(in_order(first), in_order(rows), rtol=0, atol=1e-5)
    torch.testing.assert_close(in_order(second), in_order(rows), rtol=0, atol=1e-5)
    assert not torch.allclose(first, rows)
    assert not torch.allclose(first, second)


@pytest.fixture(scope="module")
def scores(
    model: HookedSparseTransformer, corpus: Corpus, trained: tuple[Path, dict[Site, Any]]
) -> ArmScores:
    return score_saes(model, trained[1], corpus.validation.windows(16, 8), progress=False)


def test_scores_are_those_of_plain_torch(model, corpus, trained, scores):
    windows = corpus.validation.windows(16, 8)
    loss = model(windows, return_type="loss").item()
    assert scores.loss == pytest.approx(loss, abs=1e-5)
    hooks = [
        (info.hook_name, lambda x, hook, sae=trained[1][info.site]: sae(x))
        for info in coded_sites(model)
    ]
    all_at_once = model.run_with_hooks(windows, return_type="loss", fwd_hooks=hooks).item()
    assert scores.loss_spliced == pytest.approx(all_at_once, abs=1e-5)
    _, cache = model.run_with_cache(windows)
    for info, site in zip(coded_sites(model), scores.sites, strict=True):
        latents = trained[1][info.site].encode(cache[info.hook_name])
        on = latents != 0
        assert site.l0 == pytest.approx(on.float().sum(-1).mean().item())
        assert site.n_dead == int((~on.flatten(0, 1).any(0)).sum())
    assert scores.l0 == pytest.approx(sum(s.l0 for s in scores.sites) / 5)
    assert 0 < scores.dead_fraction < 1
    assert ArmScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


def test_the_table_has_a_row_for_each_site_and_one_for_all(scores):
    rows = scores_table(scores)
    assert [row["site"] for row in rows] == [s.site for s in scores.sites] + ["all at once"]
    text = markdown(rows)
    assert len(text.splitlines()) == 2 + len(rows)
    assert text.splitlines()[0].startswith("| site | latents | L0 |")


def test_a_sweep_is_instant_the_second_time(model, corpus, tmp_path, monkeypatch):
    grid = [
        replace(SMALL, sites=("mlp_in",), n_windows=8, l0=l0, expansion=expansion)
        for l0 in (2, 4)
        for expansion in (2, 4)
    ]
    cells = sweep_saes(model, corpus, tmp_path, grid, n_eval_windows=4, progress=False)
    assert [cell.settings for cell in cells] == grid
    assert [round(cell.scores.l0) for cell in cells] == [2, 2, 4, 4]
    monkeypatch.setattr("tl_sparse.sae_arm.training.train_sae", None)
    monkeypatch.setattr("tl_sparse.sae_arm.sweep.score_saes", None)
    again = sweep_saes(model, corpus, tmp_path, grid, n_eval_windows=4, progress=False)
    assert again == cells
    table = sweep_table(cells)
    losses = [float(row["loss, all spliced"]) for row in table]
    assert losses == sorted(losses)


def cell(l0: float, loss: float) -> SweepCell:
    from tl_sparse.sae_arm import SiteScores

    site = SiteScores(
        site="0.mlp_in", n_latents=8, l0=l0, explained_variance=0.9, loss_spliced=loss,
        loss_recovered=None, n_dead=0,
    )  # fmt: skip
    scores = ArmScores(sites=(site,), loss=1.0, loss_spliced=loss, n_tokens=10)
    return SweepCell(SAESettings(), scores, Path())


def test_the_choice_is_the_lowest_loss_at_no_more_latents():
    few, many, near, worse = cell(16.0, 3.4), cell(32.0, 3.2), cell(17.0, 3.3), cell(8.0, 3.5)
    assert choose([few, many, near, worse], 16.0) is near
    assert choose([few, many, worse], 16.0) is few
    assert choose([few, many, near], 32.0) is many
    with pytest.raises(ValueError, match=r"the lowest is 8\.0"):
        choose([few, worse], 4.0)
