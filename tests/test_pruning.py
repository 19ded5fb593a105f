"""`prune` on a model whose mechanism is planted by hand, and its promises."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_forward
from torch import Tensor

from tl_sparse import only_circuit, prune
from tl_sparse.ablation import References, zero_references
from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.config import PruningConfig, SearchConfig, SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import TaskGateError, UnreachableTargetError, evaluate, search, sweep
from tl_sparse.pruning.sizes import grid, rank
from tl_sparse.selection import nonzero_weights, select_nodes
from tl_sparse.sites import site_map
from tl_sparse.tasks import Pair, PairTask, Split

QUICK = PruningConfig(n_steps=150, n_edge_steps=60, batch_size=16, learning_rate=0.02, k_coef=3e-3)


class Letters:
    """A tokenizer of single letters."""

    def encode(self, text, add_special_tokens=True):
        return [ord(c) - 97 for c in text]

    def decode(self, tokens):
        return "".join(chr(97 + t) for t in tokens)


@cache
def letters_task() -> PairTask:
    """The first letter, y or z, says whether the answer is b or c; the middle is noise."""
    generator = torch.Generator().manual_seed(0)

    def some(n: int, letters: str) -> list[Pair]:
        pairs = {}
        while len(pairs) < n:
            picks = torch.randint(len(letters), (4,), generator=generator).tolist()
            noise = "".join(letters[i] for i in picks)
            pairs[noise] = Pair(("y" + noise, "z" + noise), ("b", "c"))
        return list(pairs.values())

    splits: dict[Split, list[Pair]] = {
        "train": some(40, "defgh"),
        "validation": some(16, "ijkl"),
        "test": some(16, "mnop"),
    }
    return PairTask("letters", splits, tokenizer=Letters())


def planted_model() -> HookedSparseTransformer:
    """One head copies channel 0 (y against z) to channel 5, read by the logits of b and c.

    The value weight into head 0 and the output weight are the circuit; decoys write elsewhere.
    """
    model = make_model(n_layers=1, d_vocab=26, normalization_type="RMSPre", random=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[24, 0], model.embed.W_E[25, 0] = 1.0, -1.0
        model.embed.W_E[:, 1] = 1.0  # every token, so that the norm has something to divide by
        attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
        attn.W_V[0, 0, 2] = 1.0
        attn.W_O[0, 2, 5] = 2.0
        model.unembed.W_U[5, 1], model.unembed.W_U[5, 2] = 0.6, -0.6
        # Decoys: they fire on the same inputs and write to channels that the answers do not read.
        attn.W_V[1, 0, 3] = 1.0
        attn.W_O[1, 3, 9] = 1.0
        mlp.W_in[0, 7] = 2.0
        mlp.W_in[1, 8] = 2.0
        mlp.W_out[7, 11] = 1.0
        mlp.W_out[8, 12] = 1.0
        model.unembed.W_U[12, 20] = 1.0
    model.weight_masks.project_(model, model.sparsity)
    return model


@pytest.fixture(scope="module")
def planted() -> HookedSparseTransformer:
    return planted_model()


def test_the_planted_circuit_is_found_edge_for_edge(planted):
    circuit = prune(planted, letters_task(), zero_references(planted), QUICK, progress=False)
    read, value, write = (
        Node(Site(0, "attn_in"), 0),
        Node(Site(0, "v"), 2),
        Node(Site(0, "attn_out"), 5),
    )
    assert set(circuit.edges) == {Edge(read, value, 1.0), Edge(value, write, 2.0)}
    assert set(circuit.nodes) == {read, value, write}
    assert circuit.losses["validation"] <= 0.15
    assert circuit.losses["test_accuracy"] == 1
    assert circuit.n_interface == 4  # y, z into the read; b, c out of the write
    assert not circuit.forced


def random_task_and_model(seed: int = 0) -> tuple[PairTask, HookedSparseTransformer, References]:
    sparsity = SparsityConfig(weight_density=1 / 4, activation_density=1 / 2)
    model = make_model(sparsity, d_vocab=26, seed=seed, dtype=torch.float64)
    return letters_task(), model, zero_references(model)


FREE = PruningConfig(
    n_steps=15,
    n_edge_steps=15,
    batch_size=8,
    target_loss=1.2,
    min_accuracy=0.0,
    learning_rate=0.05,
    k_coef=1e-3,
)


def test_losses_in_the_circuit_are_those_of_an_independent_forward_pass():
    task, model, refs = random_task_and_model()
    circuit = prune(model, task, refs, FREE, progress=False)
    kept = set(circuit.nodes)

    def at(layer, name, x):
        keep = torch.tensor([Node(Site(layer, name), c) in kept for c in range(x.shape[-1])])
        return torch.where(keep, x, torch.zeros_like(x))

    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        batch = task.batch(split)
        logits = plain_forward(p, batch.tokens, model.sparsity, SHAPE, at)
        last = logits[torch.arange(len(batch.last)), batch.last]
        right, wrong = (last.gather(1, ids[:, None])[:, 0] for ids in (batch.correct, batch.wrong))
        by_hand = torch.log1p(torch.exp(wrong - right)).mean().item()
        assert circuit.losses[split] == pytest.approx(by_hand, abs=1e-9)
    with only_circuit(model, circuit):
        assert evaluate(model, task, "test")[0] == pytest.approx(circuit.losses["test"])


@pytest.mark.parametrize("seed", range(3))
def test_after_drop_one_every_node_is_needed(seed):
    # Nothing is learned: the taus rank nearly at random, and the path alone leaves much to drop.
    task, model, refs = random_task_and_model(seed)
    config = replace(FREE, k_coef=0.0, n_steps=2)
    circuit = prune(model, task, refs, config, progress=False)
    untouched = prune(model, task, refs, replace(config, drop_one=False), progress=False)
    assert set(circuit.nodes) < set(untouched.nodes)

    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    batch = task.batch("validation")

    def loss_with(kept: dict[Site, Tensor]) -> float:
        def at(layer, name, x):
            return torch.where(kept[Site(layer, name)], x, torch.zeros_like(x))

        logits = plain_forward(p, batch.tokens, model.sparsity, SHAPE, at)
        last = logits[torch.arange(len(batch.last)), batch.last]
        right, wrong = (last.gather(1, ids[:, None])[:, 0] for ids in (batch.correct, batch.wrong))
        return torch.log1p(torch.exp(wrong - right)).mean().item()

    sites = site_map(model)
    kept = {
        info.site: torch.tensor([Node(info.site, c) in circuit.nodes for c in range(info.width)])
        for info in sites.sites
    }
    assert loss_with(kept) <= config.target_loss
    for node in circuit.nodes:
        fewer = {site: keep.clone() for site, keep in kept.items()}
        fewer[node.site][node.channel] = False
        left = select_nodes(fewer, nonzero_weights(model, sites)).nodes
        assert loss_with(dict(left)) > config.target_loss


def test_edges_are_the_nonzero_weights_between_kept_nodes():
    task, model, refs = random_task_and_model()
    circuit = prune(model, task, refs, FREE, progress=False)
    kept, n = set(circuit.nodes), 0

    def count(matrix: Tensor, layer: int, source: str, target: str) -> int:
        pairs = (matrix != 0).nonzero().tolist()
        return sum(
            Node(Site(layer, source), s) in kept and Node(Site(layer, target), t) in kept
            for s, t in pairs
        )

    for layer, block in enumerate(model.blocks):
        for name, w in (("q", block.attn.W_Q), ("k", block.attn.W_K), ("v", block.attn.W_V)):
            n += count(torch.cat(list(w), dim=1), layer, "attn_in", name)
        n += count(block.attn.W_O.flatten(0, 1), layer, "v", "attn_out")
        n += count(block.mlp.W_in, layer, "mlp_in", "mlp_neuron")
        n += count(block.mlp.W_out, layer, "mlp_neuron", "mlp_out")
    assert circuit.n_edges == n > 0
    fed = {edge.target for edge in circuit.edges}
    assert all(node in fed or node.site.name in ("attn_in", "mlp_in") for node in circuit.nodes)


def test_the_model_is_left_as_it_was_and_the_same_seed_gives_the_same_circuit():
    task, model, refs = random_task_and_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = prune(model, task, refs, FREE, progress=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert all(not hook.fwd_hooks for hook in model.hook_dict.values())
    assert prune(model, task, refs, FREE, progress=False).to_json() == first.to_json()


def test_masks_learn_where_gradients_are_off_for_everything_else(planted):
    refs = zero_references(planted)
    with torch.no_grad():
        off = prune(planted, letters_task(), refs, QUICK, progress=False)
        assert not torch.is_grad_enabled()
    assert off == prune(planted, letters_task(), refs, QUICK, progress=False)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode\(\) makes none"):
        prune(planted, letters_task(), refs, QUICK, progress=False)


def test_tied_queries_and_keys_are_kept_or_dropped_together():
    task, model, refs = random_task_and_model()
    config = PruningConfig.from_dict(FREE.to_dict() | {"tie_qk": True})
    circuit = prune(model, task, refs, config, progress=False)
    for layer in (0, 1):
        assert circuit.channels(Site(layer, "q")) == circuit.channels(Site(layer, "k"))


def test_the_unembedding_is_pruned_on_request_and_never_counted(planted):
    config = PruningConfig.from_dict(QUICK.to_dict() | {"mask_final": True})
    circuit = prune(planted, letters_task(), zero_references(planted), config, progress=False)
    assert circuit.channels(Site(1, "final_in")) == (5,)
    assert circuit.n_nodes == 3


def test_a_model_that_cannot_do_the_task_is_refused_unless_forced(planted):
    blind = planted_model()
    with torch.no_grad():
        blind.blocks[0].attn.W_O.zero_()
    refs = zero_references(blind)
    with pytest.raises(
        TaskGateError, match=r"answers 0\.0% of the test prompts.*gate of 90%"
    ) as got:
        prune(blind, letters_task(), refs, QUICK, progress=False)
    assert got.value.losses["model_test"] == pytest.approx(math.log(2))
    config = PruningConfig.from_dict(QUICK.to_dict() | {"target_loss": 0.8, "n_steps": 2})
    forced = prune(blind, letters_task(), refs, config, force=True, progress=False)
    assert forced.forced
    assert "forced past the gate" in repr(forced)
    assert forced.n_nodes == 0  # nothing at all reaches a loss of 0.8


def test_a_target_out_of_reach_names_the_lowest_loss(planted):
    config = PruningConfig.from_dict(QUICK.to_dict() | {"target_loss": 1e-12, "n_steps": 2})
    with pytest.raises(UnreachableTargetError, match="reaches a loss of 1e-12: the lowest") as got:
        prune(planted, letters_task(), zero_references(planted), config, progress=False)
    assert 0 < got.value.best_loss < 0.05


def test_references_of_another_model_and_long_prompts_and_nan_are_refused(planted):
    task = letters_task()
    other = make_model(n_layers=1, d_vocab=26)
    with pytest.raises(ValueError, match="measured on another model"):
        prune(planted, task, zero_references(other), QUICK, progress=False)
    short = make_model(n_layers=1, d_vocab=26, n_ctx=4)
    with pytest.raises(ValueError, match="has a prompt of 5 tokens; the model reads at most 4"):
        prune(short, task, zero_references(short), QUICK, progress=False)
    broken = make_model(n_layers=1, d_vocab=26)
    with torch.no_grad():
        broken.unembed.W_U.fill_(float("nan"))
    with pytest.raises(ValueError, match="are NaN or infinite"):
        prune(broken, task, zero_references(broken), QUICK, force=True, progress=False)


def test_what_is_no_model_task_references_or_config_is_told_in_words(planted):
    good: Any = (planted, letters_task(), zero_references(planted), QUICK)
    bad: list[tuple[int, Any, str]] = [
        (0, None, "model is a HookedTransformer, got None"),
        (1, "single_double_quote", r"task is a Task, got 'single_double_quote'.*tasks\.get"),
        (2, None, r"references are .* got None\. Measure them with references\(model, corpus\)"),
        (3, {"target_loss": 0.1}, r"config is a PruningConfig, got \{.*PruningConfig\.from_dict"),
        (2, replace(good[2], ablation="bogus"), r"references\.ablation is one of .* got 'bogus'"),
    ]
    for place, wrong, message in bad:
        given: Any = list(good)
        given[place] = wrong
        for ask in (prune, sweep):
            with pytest.raises(ValueError, match=message):
                ask(*given, progress=False)
        with pytest.raises(ValueError, match=message):
            search(*given, search_config=SearchConfig(n_trials=1), progress=False)
    with pytest.raises(ValueError, match="search_config is a SearchConfig, got 20"):
        search(*good, search_config=cast(Any, 20), progress=False)


def test_nodes_are_ranked_by_tau_and_sizes_tried_from_small_to_large():
    a, b = Site(0, "q"), Site(0, "v")
    ranks = rank({a: torch.tensor([0.5, -1.0, 0.5]), b: torch.tensor([0.9, 0.0])})
    assert ranks[a].tolist() == [1, 4, 2]
    assert ranks[b].tolist() == [0, 3]
    sizes = grid(1, 500, 1.2)
    assert sizes[:6] == [1, 2, 3, 4, 5, 6]
    assert sizes[-1] == 500
    assert all(x < y <= max(x + 1, x * 1.2) for x, y in pairwise(sizes))
