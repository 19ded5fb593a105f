"""Masks: exact counts with ties, the guard, joint ranking."""

import pytest
import torch
from conftest import make_model

from tl_sparse.config import SparsityConfig


def test_every_mask_keeps_exactly_its_share_ties_included():
    sparsity = SparsityConfig(weight_density=0.07, embedding_density=0.3, bias_density=0.21)
    model = make_model(sparsity)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.sign())  # all magnitudes equal: nothing but ties
    model.project_()
    for spec in model.weight_masks.specs:
        density = getattr(sparsity, f"{spec.kind}_density")
        parameter, mask = model.get_parameter(spec.name), model.weight_masks[spec.name]
        assert int(mask.sum()) == int(density * parameter.numel() + 1e-9), spec.name
        assert (parameter[~mask] == 0).all()


@pytest.mark.parametrize("ranking", ["separate", "joint"])
def test_the_guard_leaves_every_neuron_and_channel_its_weights(ranking):
    model = make_model(SparsityConfig(weight_density=1 / 8, min_alive=3, qkv_ranking=ranking))
    for block in model.blocks:
        for weight, dim in (
            (block.attn.W_Q, 1), (block.attn.W_K, 1), (block.attn.W_V, 1), (block.attn.W_O, 2),
            (block.mlp.W_in, 0), (block.mlp.W_out, 1),
        ):  # fmt: skip
            assert int((weight != 0).sum(dim).min()) >= 3


def test_joint_ranking_shares_one_budget_between_q_k_and_v():
    model = make_model(SparsityConfig(weight_density=1 / 8, qkv_ranking="joint"))
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V"):
            getattr(model.blocks[0].attn, name).normal_(std=100 if name == "W_Q" else 1)
    model.project_()
    attn = model.blocks[0].attn
    counts = [int((w != 0).sum()) for w in (attn.W_Q, attn.W_K, attn.W_V)]
    assert sum(counts) == 3 * 1024 // 8
    assert counts[0] > 0.95 * sum(counts)


def test_masks_are_a_mapping_that_names_what_it_has():
    masks = make_model().weight_masks
    assert len(masks) == 2 + 2 * 12
    assert "blocks.1.attn.b_V" in masks
    with pytest.raises(KeyError, match=r"'unembed\.b_U' has no mask; these have one: embed\.W_E"):
        masks["unembed.b_U"]
    assert "26 parameters" in repr(masks)


def test_applying_masks_does_not_choose_them_anew():
    model = make_model(SparsityConfig(weight_density=1 / 8))
    before = {name: mask.clone() for name, mask in model.weight_masks.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.apply_masks_()
    for name, mask in model.weight_masks.items():
        assert torch.equal(mask, before[name])
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_two_names_of_one_parameter_are_refused_before_anything_is_written(tmp_path):
    model = make_model()
    model.blocks[1] = model.blocks[0]
    message = r"blocks\.0\.\S+ and blocks\.1\.\S+ are one parameter"
    for call in (model.project_, lambda: model.save(tmp_path / "shared")):
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "shared").exists()
