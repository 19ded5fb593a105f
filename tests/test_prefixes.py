"""Prompts run as the tree of their prefixes give what they give one by one, with less work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_cut
from test_edges import CONFIG, decoyed
from test_pruning import Letters, letters_task
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import HookedTransformer

from tl_sparse import prune
from tl_sparse.ablation import References, pair_references
from tl_sparse.circuit import Edge
from tl_sparse.config import PruningConfig, SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.model.prefixes import PrefixTree, last_logits, runs_on_prefixes
from tl_sparse.pruning import CleanUp, Trial, evaluate
from tl_sparse.pruning.learning import learn_edges, learn_nodes
from tl_sparse.selection import Selection, select_nodes
from tl_sparse.sites import model_hash, site_map
from tl_sparse.tasks import Pair, PairTask, TaskBatch

SPARSE = SparsityConfig(weight_density=1 / 4, activation_density=1 / 2, bigram_table=True)


def some_pairs(n: int, letters: str, seed: int) -> list[Pair]:
    """Pairs of 2 to 9 letters with a common beginning, middle and end around what differs."""
    generator = torch.Generator().manual_seed(seed)

    def word(longest: int) -> str:
        n_letters = int(torch.randint(1, longest, (), generator=generator))
        picks = torch.randint(len(letters), (n_letters,), generator=generator)
        return "".join(letters[i] for i in picks.tolist())

    pairs = {}
    while len(pairs) < n:
        before, after = word(5), word(4)
        pairs[before, after] = Pair((f"{before}y{after}", f"{before}z{after}"), ("b", "c"))
    return list(pairs.values())


TASK = PairTask(
    "letters",
    {
        "train": some_pairs(40, "defgh", 0),
        "validation": some_pairs(12, "ijkl", 1),
        "test": some_pairs(8, "mnop", 2),
    },
    tokenizer=Letters(),
)


def model_of(sparsity: SparsityConfig | None = SPARSE, **shape: Any) -> HookedSparseTransformer:
    return make_model(sparsity, d_vocab=26, dtype=torch.float64, **shape)


SMALL: dict[str, Any] = {"d_model": 16, "d_head": 4, "d_mlp": 12}


def means(model: HookedTransformer) -> References:
    """Reference values that are no zeros, so that a wrong place for them shows."""
    generator = torch.Generator().manual_seed(3)
    values = {
        info.site: torch.randn(info.width, generator=generator, dtype=model.cfg.dtype) / 4
        for info in site_map(model, final=True).sites
    }
    return References(values, "corpus_mean", model_hash(model), {})


def some_selection(trial: Trial, *, seed: int = 4, share: float = 0.5) -> Selection:
    """Half of the nodes, and a third of the weights between them cut."""
    generator = torch.Generator().manual_seed(seed)
    kept = {
        info.site: torch.rand(info.width, generator=generator) < share for info in trial.sites.sites
    }
    nodes = select_nodes(kept, trial.weights)
    return nodes.without(edges=nodes.edge_list(trial.model)[::3])


def trial_of(model: HookedTransformer, **kinds: Any) -> Trial:
    return Trial(model, TASK, site_map(model, **kinds), means(model))


def one_by_one(trial: Trial, batch: TaskBatch) -> TaskBatch:
    """The same prompts without their tree."""
    return replace(batch, tree=None)


@pytest.mark.parametrize(
    ("sparsity", "shape"),
    [
        (SPARSE, {}),
        (SPARSE, {"n_layers": 1}),
        (SPARSE, {"n_layers": 3, "attn_only": True}),
        (SPARSE, {"normalization_type": "LN", "use_attention_sinks": False}),
        (SPARSE, {"normalization_type": None, "use_hook_mlp_in": True}),
        (replace(SPARSE, position_channels=3), {"positional_embedding_type": "none"}),
        (None, {}),
    ],
)
def test_losses_and_gradients_of_gates_are_those_of_prompts_one_by_one(sparsity, shape):
    model = model_of(sparsity, **shape)
    trial = trial_of(model, final=True)
    batch = trial.batch("train", range(40))
    assert batch.tree is not None
    selection = some_selection(trial)
    nodes, edges = trial.gates(selection)
    assert any(joint.target.name == "attn_out" for joint in edges)  # cut through W_O, rows and all
    found = []
    for prompts in (one_by_one(trial, batch), batch):
        gates = {site: gate.clone().requires_grad_() for site, gate in nodes.items()}
        with trial.running(gates, trial.references.values, edges):
            loss = TASK.loss(TASK.logits(model, prompts), prompts)
        found.append((loss.detach(), torch.autograd.grad(loss, list(gates.values()))))
    (slow, slow_gradients), (fast, fast_gradients) = found
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    for ours, theirs in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_logits_of_a_circuit_are_those_of_an_independent_forward_pass():
    model = model_of()
    trial = trial_of(model)
    nodes, edges = trial.gates(some_selection(trial))
    batch = trial.batch("train", range(20))
    with trial.running(nodes, trial.references.values, edges):
        found = TASK.logits(model, batch)
    values = trial.references.values
    logits = plain_cut(model, batch.tokens, nodes, edges, values, SHAPE)
    wanted = logits[torch.arange(len(batch.last)), batch.last]
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-10)


def test_each_prefix_is_run_once_and_the_last_block_at_the_ends_alone():
    model = model_of()
    batch = TASK.batch("train", range(30)).on_prefixes()
    assert batch.tree is not None
    prompts = [p[: e + 1] for p, e in zip(batch.tokens.tolist(), batch.last.tolist(), strict=True)]
    n_prefixes = len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})
    assert n_prefixes < sum(map(len, prompts)) < batch.tokens.numel()
    shapes: dict[str, tuple[int, ...]] = {}

    def note(activation: Tensor, hook: Any) -> None:
        shapes[hook.name] = tuple(activation.shape[:2])

    with model.hooks(fwd_hooks=[(lambda name: True, note)]):
        last_logits(model, batch.tree)
    everywhere, ends = (1, n_prefixes), (len(prompts), 1)
    for name in ("attn.hook_q", "attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post"):
        assert shapes[f"blocks.0.{name}"] == everywhere
        assert shapes[f"blocks.1.{name}"] == ends
    for name in ("hook_resid_pre", "hook_attn_read", "attn.hook_k", "attn.hook_v"):
        assert shapes[f"blocks.1.{name}"] == everywhere
    skipped = {"blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"}
    seen = set(shapes) | skipped | {name.replace(".0.", ".1.") for name in skipped}
    used = dict(model.run_with_cache(batch.tokens)[1])
    assert seen == set(used)


def test_a_model_that_someone_watches_or_that_is_of_another_kind_runs_prompt_by_prompt():
    model = model_of()
    assert runs_on_prefixes(model)
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: None)]):
        assert not runs_on_prefixes(model)
        assert trial_of(model).batch("train", [0]).tree is None
    handle = model.blocks[1].register_forward_hook(lambda module, inputs, out: None)
    assert not runs_on_prefixes(model)
    handle.remove()
    assert runs_on_prefixes(model)
    resampling = Trial(model, TASK, site_map(model), pair_references(model))
    assert resampling.batch("train", [0]).tree is None
    for shape in (
        {"attention_dir": "bidirectional", "use_attention_sinks": False},
        {"use_split_qkv_input": True},
        {"use_qk_norm": True},
        {"positional_embedding_type": "rotary", "rotary_dim": 8},
    ):
        assert not runs_on_prefixes(model_of(None, **shape)), shape
    assert not runs_on_prefixes(HookedTransformer({**SHAPE, "d_vocab": 26}))


def test_a_hook_that_changes_one_position_changes_an_evaluation_as_it_should():
    model = model_of()

    def patch(resid: Tensor, hook: Any) -> Tensor:
        changed = resid.clone()
        changed[:, 0] = 0
        return changed

    whole = evaluate(model, TASK, "test")[0]
    batch = TASK.batch("test")
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", patch)]):
        patched = evaluate(model, TASK, "test")[0]
        logits = model(batch.tokens)[torch.arange(len(batch.last)), batch.last]
    assert patched == pytest.approx(TASK.loss(logits, batch).item(), abs=1e-12)
    assert abs(patched - whole) > 1e-6


@contextmanager
def calls_of(module: torch.nn.Module) -> Iterator[list[int]]:
    """Count how often a module is run, without a hook."""
    calls: list[int] = []
    forward = module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    module.forward = counted
    try:
        yield calls
    finally:
        del module.forward


def test_a_change_in_a_later_layer_starts_from_the_streams_of_what_was_there_before():
    model = model_of(n_layers=3)
    fast, slow = trial_of(model), trial_of(model)
    base = some_selection(fast)
    fast.start_from(base)
    edges = base.edge_list(model)
    changes = [base.without(edges=[edge]) for edge in edges[:: len(edges) // 9]]
    changes += [base.without(nodes=[node]) for node in base.node_list()[::49]]
    changes.append(base.with_edges([_cut_edge(base, fast, layer=2)]))
    layers = set()
    for n_examples in (8, None):
        fast.loss(base, n_examples=n_examples)  # its streams are made here
        for change in changes:
            layer = min(_layers_apart(base, change))
            with calls_of(model.blocks[0].ln1) as first, calls_of(model.blocks[1].ln1) as second:
                found = fast.loss(change, n_examples=n_examples)
            assert (bool(first), bool(second)) == (layer == 0, layer <= 1)
            assert found == pytest.approx(slow.loss(change, n_examples=n_examples), abs=1e-12)
            layers.add(layer)
    assert layers == {0, 1, 2}


def _layers_apart(one: Selection, other: Selection) -> set[int]:
    nodes = {s.layer for s, kept in one.nodes.items() if not kept.equal(other.nodes[s])}
    return nodes | {
        j.target.layer for j, kept in one.edges.items() if not kept.equal(other.edges[j])
    }


def _cut_edge(selection: Selection, trial: Trial, *, layer: int) -> Edge:
    whole = select_nodes(dict(selection.nodes), trial.weights)
    kept = {(edge.source, edge.target) for edge in selection.edge_list(trial.model)}
    return next(
        edge
        for edge in whole.edge_list(trial.model)
        if (edge.source, edge.target) not in kept and edge.target.site.layer == layer
    )


QUICK = PruningConfig(
    n_steps=25, n_edge_steps=20, batch_size=8, target_loss=0.7, min_accuracy=0.0,
    learning_rate=0.05, k_coef=1e-3,
)  # fmt: skip


def decoyed_and_its_task() -> tuple[HookedSparseTransformer, PairTask, PruningConfig]:
    return decoyed(), letters_task(), replace(CONFIG, target_loss=0.2)


def random_and_its_task() -> tuple[HookedSparseTransformer, PairTask, PruningConfig]:
    return (
        model_of(**SMALL),
        TASK,
        replace(QUICK, k_coef="adaptive"),
    )


@pytest.mark.parametrize(
    ("made", "tie_qk"), [(decoyed_and_its_task, True), (random_and_its_task, False)]
)
def test_the_circuit_is_the_one_that_is_found_prompt_by_prompt(made, tie_qk, monkeypatch):
    model, task, config = made()
    config = replace(config, tie_qk=tie_qk)
    fast = prune(model, task, means(model), config, progress=False)
    monkeypatch.setattr("tl_sparse.pruning.trial.runs_on_prefixes", lambda model: False)
    slow = prune(model, task, means(model), config, progress=False)
    assert fast.edges == slow.edges
    assert fast.nodes == slow.nodes
    assert fast.losses == pytest.approx(slow.losses, abs=1e-6)
    assert fast.n_edges > 0


def test_the_clean_up_runs_no_selection_twice(monkeypatch):
    model, seen = model_of(**SMALL), []
    loss = Trial.loss

    def noted(self: Trial, selection: Selection, **rest: Any) -> float:
        masks = (*selection.nodes.values(), *selection.edges.values())
        seen.append((tuple(mask.numpy().tobytes() for mask in masks), rest.get("n_examples")))
        return loss(self, selection, **rest)

    run = CleanUp.run

    def run_noted(self: CleanUp) -> Selection:
        seen.clear()
        monkeypatch.setattr(Trial, "loss", noted)
        try:
            return run(self)
        finally:
            monkeypatch.setattr(Trial, "loss", loss)

    monkeypatch.setattr(CleanUp, "run", run_noted)
    prune(model, TASK, means(model), QUICK, progress=False)
    assert len(seen) == len(set(seen)) > 10


class HostReads(TorchDispatchMode):
    """Counts how often the host asks a tensor for a number, which on a GPU waits for all before.

    AdamW's counts of its steps, which are on the host anyway, are left out: they are 0-dimensional,
    of torch's default type, and the model here has another one.
    """

    n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args=(), kwargs=None) -> Any:
        if "_local_scalar_dense" in str(function) and args[0].dtype != torch.get_default_dtype():
            self.n += 1
        return function(*args, **(kwargs or {}))


def test_while_masks_are_learned_the_host_looks_every_twentieth_step_only():
    model = model_of(**SMALL)
    trial = trial_of(model)
    selection = some_selection(trial)
    counts = []
    for n_steps in (20, 40):
        config = replace(QUICK, n_steps=n_steps, n_edge_steps=n_steps, k_coef="adaptive")
        with model.using_products("dense"), HostReads() as reads:
            learn_nodes(trial, config, False)
            learn_edges(trial, selection, config, False)
        counts.append(reads.n)
    assert counts[1] - counts[0] <= 2 * 4  # one look more in either stage


def test_a_loss_that_is_no_number_for_one_step_only_is_noticed(monkeypatch):
    model = model_of()
    trial, steps = trial_of(model), []
    loss = PairTask.loss

    def broken(self: PairTask, logits: Tensor, batch: TaskBatch) -> Tensor:
        steps.append(1)
        return loss(self, logits, batch) * (float("nan") if len(steps) == 7 else 1.0)

    monkeypatch.setattr(PairTask, "loss", broken)
    with pytest.raises(ValueError, match="became nan by step 20 of learning nodes for letters"):
        learn_nodes(trial, QUICK, False)


def test_a_tree_of_one_prompt_and_of_equal_prompts():
    tokens, last = torch.tensor([[3, 4, 0], [3, 4, 5], [3, 4, 5]]), torch.tensor([1, 2, 2])
    tree = PrefixTree.of(tokens, last)
    assert tree.firsts.tolist() == [0, 1, 5]
    assert tree.prefixes.tolist() == [[0, 1, 0], [0, 1, 2], [0, 1, 2]]
    x = torch.arange(9.0).view(3, 3, 1)
    assert tree.distinct(x).flatten().tolist() == [0, 1, 5]
    assert tree.at_ends(tree.distinct(x)).flatten().tolist() == [1, 5, 5]
    assert PrefixTree.of(tokens[:1], last[:1]).firsts.tolist() == [0, 1]
