"""The same numbers on a GPU as on a CPU; skipped where there is no GPU.

In float64, where the two differ in the last bits alone, a whole training, pruning and audit must
come out alike. In the half precisions a run has to learn and to come back from its checkpoint.
"""

from dataclasses import replace

import pytest
import torch
from conftest import SHAPE, make_model
from test_auditing import QUIET, TRUTH, failed, grow, run
from test_pruning import QUICK, letters_task, planted_model

from tl_sparse import HookedSparseTransformer, prune, references, train
from tl_sparse.ablation import zero_references
from tl_sparse.config import SparsityConfig, TrainingConfig
from tl_sparse.functional import abs_topk, topk_mask
from tl_sparse.sae_arm import SAESettings, splice, train_saes

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not GPU, reason="needs a GPU")

SPARSITY = SparsityConfig(
    weight_density=1 / 8, embedding_density=1 / 2, activation_density=1 / 4, bigram_table=True
)
TRAINING = TrainingConfig(
    n_tokens=12 * 8 * 16, batch_size=8, eval_every=4, checkpoint_every=4, n_eval_windows=4
)
GRADUAL = replace(TRAINING, n_tokens=60 * 8 * 16)


def with_ties(*shape, dtype=torch.float32):
    """Numbers of which many are equal in magnitude."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.mul(2).round().div(2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 64, 257, 512, 2048, 4096])
def test_a_gpu_keeps_the_channels_that_a_cpu_keeps(width, dtype):
    for x in (with_ties(3, 40, width, dtype=dtype), torch.randn(33, width).to(dtype)):
        for n_kept in {1, width // 4, width - 1}:
            here = x.clone().requires_grad_()
            there = x.to("cuda", copy=True).requires_grad_()
            weights = torch.randn(x.shape).to(dtype)
            kept, kept_there = abs_topk(here, n_kept), abs_topk(there, n_kept)
            (kept * weights).sum().backward()
            (kept_there * weights.cuda()).sum().backward()
            assert torch.equal(kept_there.cpu(), kept)
            assert here.grad is not None
            assert there.grad is not None
            assert torch.equal(there.grad.cpu(), here.grad)


def test_nan_and_infinity_are_the_largest_on_a_gpu_too():
    rows = [[1.0, float("nan"), 2.0, -3.0], [1.0, -float("inf"), 2.0, 5.0]]
    x = torch.tensor(rows, device="cuda")
    assert abs_topk(x, 1).isnan().tolist()[0][1]
    assert abs_topk(x, 2)[1].tolist()[1:] == [-float("inf"), 0.0, 5.0]


@pytest.mark.parametrize("guard", [0, 4])
@pytest.mark.parametrize("density", [1 / 64, 1 / 4, 0.9])
@pytest.mark.parametrize("values", [with_ties, lambda *shape: torch.randn(shape)])
def test_a_gpu_keeps_the_weights_that_a_cpu_keeps(values, density, guard):
    weight = values(400, 700)
    k = int(density * weight.numel())
    here = topk_mask(weight, k, min_alive=guard, alive_dim=0)
    there = topk_mask(weight.cuda(), k, min_alive=guard, alive_dim=0)
    assert torch.equal(there.cpu(), here)


def trained(corpus, device, folder=None, **changes):
    """A tiny model trained for twelve steps, without annealing, from the same weights.

    The two devices' generators draw other numbers: at the start, and where annealing begins.
    """
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "dtype": torch.float64} | changes
    weights = HookedSparseTransformer(shape, sparsity=SPARSITY).state_dict()
    model = HookedSparseTransformer(shape | {"device": device}, sparsity=SPARSITY)
    model.load_state_dict(weights)
    config = replace(TRAINING, anneal="none")
    return model, train(model, corpus, config, folder=folder, progress=False)


def test_a_training_comes_out_as_on_a_cpu(corpus, tmp_path):
    here, history = trained(corpus, "cpu")
    there, history_there = trained(corpus, "cuda", tmp_path)
    for ours, theirs in zip(history.records, history_there.records, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-9)
        assert theirs["validation_loss"] == pytest.approx(ours["validation_loss"], rel=1e-9)
        assert theirs["nonzero"] == ours["nonzero"]
    for name, mask in here.weight_masks.items():
        assert torch.equal(there.weight_masks[name].cpu(), mask)
    torch.testing.assert_close(
        {n: p.cpu() for n, p in there.state_dict().items()}, here.state_dict(), rtol=0, atol=1e-9
    )
    loaded = HookedSparseTransformer.load(tmp_path / "checkpoint" / "model")
    tokens = corpus.validation.windows(16, 4)
    torch.testing.assert_close(loaded(tokens), here(tokens), rtol=0, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_in_half_precision_learns_and_goes_on_from_its_checkpoint(
    precision, corpus, tmp_path
):
    shape = SHAPE | {"d_vocab": corpus.d_vocab, "device": "cuda"}
    config = replace(GRADUAL, precision=precision)
    model = HookedSparseTransformer(shape, sparsity=SPARSITY)
    first = train(model, corpus, config, folder=tmp_path, progress=False)
    assert first.records[-1]["validation_loss"] < first.records[0]["validation_loss"] - 0.05
    again = HookedSparseTransformer(shape, sparsity=SPARSITY)
    second = train(again, corpus, config, folder=tmp_path, progress=False)
    assert second.records == first.records
    assert next(again.parameters()).dtype == torch.float32


def test_pruning_finds_the_planted_circuit_on_a_gpu():
    model, task = planted_model(), letters_task()
    here = prune(model, task, zero_references(model), QUICK, progress=False)
    model = model.to("cuda")
    there = prune(model, task, zero_references(model), QUICK, progress=False)
    assert set(there.nodes) == set(here.nodes)
    assert set(there.edges) == set(here.edges)
    assert there.losses["test"] == pytest.approx(here.losses["test"], rel=1e-3)


def test_an_audit_finds_the_same_on_a_gpu():
    here, there = (run(grow(TRUTH + QUIET).to(device), TRUTH) for device in ("cpu", "cuda"))
    assert failed(there) == {}
    assert there.verdicts() == here.verdicts()
    for ours, theirs in zip(here.findings, there.findings, strict=True):
        assert theirs.name == ours.name
        assert theirs.value == pytest.approx(ours.value, rel=1e-3, abs=1e-3)


def test_references_are_those_of_a_cpu(corpus):
    model = make_model(SPARSITY, d_vocab=corpus.d_vocab)
    here = references(model, corpus, 2048, progress=False)
    there = references(model.to("cuda"), corpus, 2048, progress=False)
    for site, values in here.values.items():
        torch.testing.assert_close(there.values[site].cpu(), values, rtol=0, atol=1e-5)


def test_saes_train_and_splice_on_a_gpu(corpus, tmp_path):
    model = make_model(d_vocab=corpus.d_vocab, device="cuda")
    settings = SAESettings(architecture="topk", expansion=2, l0=4, n_windows=32, batch_size=64)
    saes = train_saes(model, corpus, tmp_path, settings, progress=False)
    spliced = splice(model, saes)
    tokens = corpus.validation.windows(16, 2).cuda()
    # With the errors in it the spliced model is the model.
    torch.testing.assert_close(spliced(tokens), model(tokens), rtol=0, atol=1e-3)
