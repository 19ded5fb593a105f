"""Stage two and the clean-up: circuits down to single weights, against all subsets of them."""

import sys
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from test_pruning import letters_task
from torch import Tensor

from tl_sparse import Circuit, PruningConfig, only_circuit, prune
from tl_sparse.ablation import zero_references
from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import CleanUp, evaluate
from tl_sparse.sites import joint_matrix, site_map

CONFIG = PruningConfig(
    n_steps=60, n_edge_steps=40, batch_size=16, learning_rate=0.02, min_accuracy=0.5
)
NEAR = {"attn_in": (0, 1, 2), "q": (2,), "k": (2,), "v": (2, 3, 10), "attn_out": (5, 6),
        "mlp_in": (0, 5, 6), "mlp_neuron": (7, 8), "mlp_out": (5, 9)}  # fmt: skip
"""A few channels of each site, so that random edges among them make paths."""


def few_edges(seed: int, n_edges: int) -> HookedSparseTransformer:
    """A model with so many nonzero weights in its block, trained on the letters with them."""
    model = make_model(
        n_layers=1, d_vocab=26, dtype=torch.float64, positional_embedding_type="none", random=False
    )
    generator = torch.Generator().manual_seed(seed)
    joints = site_map(model).joints
    places = [
        (joint, source, target)
        for joint in joints
        for source in NEAR[joint.source.name]
        for target in NEAR[joint.target.name]
    ]
    chosen = torch.randperm(len(places), generator=generator)[:n_edges].tolist()
    with torch.no_grad():
        for joint in joints:
            model.weight_masks.set_(
                joint.weight, torch.zeros_like(model.weight_masks[joint.weight])
            )
        for i in chosen:
            joint, source, target = places[i]
            mask = model.weight_masks[joint.weight]
            if joint.weight.endswith(("W_Q", "W_K", "W_V")):
                mask[target // 8, source, target % 8] = True
            elif joint.weight.endswith("W_O"):
                mask[source // 8, source % 8, target] = True
            else:
                mask[source, target] = True
        for name, parameter in model.named_parameters():
            if "W_pos" not in name:
                parameter.normal_(std=0.5, generator=generator)
    model.apply_masks_()
    task = letters_task()
    batch = task.batch("train")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    with model.frozen_masks():
        for _ in range(100):
            optimizer.zero_grad()
            task.loss(task.logits(model, batch), batch).backward()
            optimizer.step()
    return model


def all_edges(model: HookedSparseTransformer) -> list[Edge]:
    return [
        Edge(Node(j.source, s), Node(j.target, t), joint_matrix(model, j)[s, t].item())
        for j in site_map(model).joints
        for s, t in (joint_matrix(model, j) != 0).nonzero().tolist()
    ]


def by_hand(model: HookedSparseTransformer, edges: list[Edge]) -> float:
    """The validation loss with these edges left in, in plain torch: nodes follow from edges."""
    fed = {"attn_in", "mlp_in"}
    nodes = {node for edge in edges for node in (edge.source, edge.target)}
    while True:  # a node without an in-edge falls, and with it the edges out of it
        into = {edge.target for edge in edges if edge.source in nodes}
        left = {node for node in nodes if node.site.name in fed or node in into}
        if left == nodes:
            break
        nodes = left
    kept = {(e.source, e.target) for e in edges}
    cuts: dict[str, tuple[Tensor, Tensor]] = {}
    for joint in site_map(model).joints:
        keep = torch.ones(joint_matrix(model, joint).shape, dtype=torch.bool)
        for s, t in (joint_matrix(model, joint) != 0).nonzero().tolist():
            ends = Node(joint.source, s), Node(joint.target, t)
            keep[s, t] = ends in kept or not set(ends) <= nodes
        cuts[joint.weight] = keep, torch.zeros(len(keep)).double()

    def at(layer: int, name: str, x: Tensor) -> Tensor:
        there = [Node(Site(layer, name), c) in nodes for c in range(x.shape[-1])]
        return torch.where(torch.tensor(there), x, torch.zeros_like(x))

    batch = letters_task().batch("validation")
    shape: dict[str, Any] = SHAPE | {"n_layers": 1}
    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    logits = plain_forward(p, batch.tokens, model.sparsity, shape, at, cuts=cuts)
    last = logits[torch.arange(len(batch.last)), batch.last]
    right, wrong = (last.gather(1, ids[:, None])[:, 0] for ids in (batch.correct, batch.wrong))
    return torch.log1p(torch.exp(wrong - right)).mean().item()


def smallest(model: HookedSparseTransformer, target: float) -> int | None:
    """The number of edges in the smallest of all subsets that reaches the target."""
    edges = all_edges(model)
    best = None
    for choice in product((False, True), repeat=len(edges)):
        n = sum(choice)
        if best is not None and n >= best:
            continue
        if by_hand(model, [e for e, kept in zip(edges, choice, strict=True) if kept]) <= target:
            best = n
    return best


@pytest.mark.parametrize("seed", [11, 16, 20, 26, 49, 57])
def test_no_subset_of_edges_is_smaller_by_more_than_one(seed):
    """Of the models that learned the task with their eight weights, some that need most of them."""
    model, task = few_edges(seed, 8), letters_task()
    target = max(0.01, 1.5 * by_hand(model, all_edges(model)))
    assert target < 0.4
    best = smallest(model, target)
    assert best is not None
    config = PruningConfig.from_dict(CONFIG.to_dict() | {"target_loss": target})
    circuit = prune(model, task, zero_references(model), config, force=True, progress=False)
    assert circuit.losses["validation"] <= target
    assert circuit.losses["validation"] == pytest.approx(by_hand(model, list(circuit.edges)))
    assert best <= circuit.n_edges <= best + 1


def decoyed() -> HookedSparseTransformer:
    """Two reads feed a value each; a weak weight from the second read into the first value too."""
    model = make_model(n_layers=1, d_vocab=26, random=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[24, :2], model.embed.W_E[25, :2] = 1.0, -1.0
        model.embed.W_E[:, 2] = 1.0
        attn = model.blocks[0].attn
        attn.W_V[0, 0, 2] = attn.W_V[1, 1, 3] = 1.0
        attn.W_V[0, 1, 2] = 0.05
        attn.W_O[0, 2, 5] = attn.W_O[1, 3, 6] = 2.0
        model.unembed.W_U[5, 1] = model.unembed.W_U[6, 1] = 0.2
        model.unembed.W_U[5, 2] = model.unembed.W_U[6, 2] = -0.2
    model.weight_masks.project_(model, model.sparsity)
    return model


def test_a_weight_between_two_needed_nodes_is_cut_when_it_is_not_needed():
    model, task = decoyed(), letters_task()
    refs = zero_references(model)
    nodes_only = PruningConfig.from_dict(CONFIG.to_dict() | {"edges": False, "target_loss": 0.1})
    circuit = prune(model, task, refs, nodes_only, progress=False)
    assert circuit.n_edges == 5
    down_to_edges = PruningConfig.from_dict(CONFIG.to_dict() | {"target_loss": 0.1})
    circuit = prune(model, task, refs, down_to_edges, progress=False)
    ends = {(str(e.source), str(e.target)) for e in circuit.edges}
    assert ends == {
        ("0.attn_in.0", "0.v.2"), ("0.attn_in.1", "0.v.11"),
        ("0.v.2", "0.attn_out.5"), ("0.v.11", "0.attn_out.6"),
    }  # fmt: skip
    with only_circuit(model, circuit):
        assert evaluate(model, task, "test")[0] == pytest.approx(circuit.losses["test"])
    assert Circuit.from_json(circuit.to_json()) == circuit
    stages = circuit.provenance["stages"]
    assert [stage["stage"] for stage in stages] == ["nodes", "edges", "clean_up"]
    assert stages[-1]["n_edges"] == 4


def test_after_the_clean_up_no_node_edge_or_pair_of_edges_can_go():
    sparsity = SparsityConfig(weight_density=1 / 4, activation_density=1 / 2)
    model, task = make_model(sparsity, d_vocab=26, dtype=torch.float64), letters_task()
    refs = zero_references(model)
    config = PruningConfig(
        n_steps=15, n_edge_steps=15, batch_size=8, target_loss=1.2, min_accuracy=0.0,
        learning_rate=0.05, k_coef=1e-3,
    )  # fmt: skip
    circuit = prune(model, task, refs, config, progress=False)
    from tl_sparse.ablation import select_circuit
    from tl_sparse.pruning import Trial

    trial = Trial(model, task, site_map(model), refs)
    selection = select_circuit(circuit, trial.sites, torch.device("cpu"))
    assert trial.loss(selection) == pytest.approx(circuit.losses["validation"])
    edges, n = list(circuit.edges), 0
    for node in circuit.nodes:
        assert trial.loss(selection.without(nodes=[node])) > config.target_loss
    for i, edge in enumerate(edges):
        assert trial.loss(selection.without(edges=[edge])) > config.target_loss
        for other in edges[:i]:
            assert trial.loss(selection.without(edges=[edge, other])) > config.target_loss
            n += 1
    assert n > 0


def test_ctrl_c_in_the_clean_up_keeps_the_smallest_circuit_so_far(monkeypatch):
    model, task = decoyed(), letters_task()
    monkeypatch.setattr(CleanUp, "pairs", interrupt)
    config = PruningConfig.from_dict(CONFIG.to_dict() | {"target_loss": 0.1})
    circuit = prune(model, task, zero_references(model), config, progress=False)
    assert circuit.provenance["interrupted"] is True
    assert circuit.losses["validation"] <= 0.1
    assert circuit.n_edges == 4
    assert all(p.requires_grad for p in model.parameters())


def test_ctrl_c_while_nodes_are_learned_chooses_by_the_masks_so_far(monkeypatch):
    model, task, steps = decoyed(), letters_task(), []
    module = sys.modules["tl_sparse.pruning.learning"]
    rate = module._learning_rate

    def stop_late(step, *rest):
        steps.append(step)
        if step == CONFIG.n_steps // 2:
            raise KeyboardInterrupt
        return rate(step, *rest)

    monkeypatch.setattr(module, "_learning_rate", stop_late)
    refs = zero_references(model)
    circuit = prune(model, task, refs, CONFIG, progress=False)
    assert circuit.provenance["interrupted"] is True
    assert circuit.losses["validation"] <= CONFIG.target_loss
    assert [stage["stage"] for stage in circuit.provenance["stages"]] == ["nodes"]
    assert steps[-1] == CONFIG.n_steps // 2
    assert all(p.requires_grad for p in model.parameters())
    out_of_reach = replace(CONFIG, target_loss=1e-9)
    with pytest.raises(KeyboardInterrupt):
        prune(model, task, refs, out_of_reach, progress=False)


def interrupt(self: CleanUp) -> bool:
    raise KeyboardInterrupt
