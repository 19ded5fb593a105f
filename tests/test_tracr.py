"""Tracr's compiled programs, whose circuits are known: found weight for weight.

The oracle is `Plain`: the program's forward pass in numpy, read from the golden file by itself,
with weights set to zero. It shares no code with us. `golden/tracr/make.py` makes the files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tl_sparse import Circuit, HookedSparseTransformer, PruningConfig, only_circuit, prune
from tl_sparse.ablation import References, zero_references
from tl_sparse.circuit import Edge
from tl_sparse.sites import model_hash, site_map
from tl_sparse.tasks import SequenceTask
from tl_sparse.tracr import from_tracr

GOLDEN = Path(__file__).parent / "golden" / "tracr"
LARGEST = 1e-4
"""How far a circuit's output may be from the program's."""
CONFIG = PruningConfig(
    target_loss=1e-10, n_steps=20, n_edge_steps=20, batch_size=16, exchange=False
)
Weight = tuple[str, int, int]
"""Haiku's name of a matrix, row, column."""


def full(entry: dict[str, Any]) -> np.ndarray:
    matrix = np.zeros(entry["shape"])
    for *place, value in entry["entries"]:
        matrix[tuple(place)] = value
    return matrix


class Plain:
    """A compiled program in numpy."""

    def __init__(self, name: str) -> None:
        self.data = json.loads((GOLDEN / f"{name}.json").read_text())
        self.params = {key: full(entry) for key, entry in self.data["params"].items()}
        self.unembed = full(self.data["unembed"])
        self.n_layers = sum(key.endswith("attn/query.w") for key in self.params)

    def inputs(self, length: int) -> np.ndarray:
        """All inputs of a length, behind the start token."""
        ids = self.data["vocabulary"]
        words = [i for word, i in ids.items() if word not in ("BOS", "compiler_pad")]
        return np.array([(ids["BOS"], *rest) for rest in product(words, repeat=length)])

    def weights(self) -> list[Weight]:
        return [
            (name, int(i), int(j))
            for name, matrix in self.params.items()
            if name.startswith("transformer") and matrix.ndim == 2
            for i, j in np.argwhere(matrix)
        ]

    def residual(self, tokens: np.ndarray, cut: Iterable[Weight] = ()) -> np.ndarray:
        p = dict(self.params)
        for name, i, j in cut:
            p[name] = p[name].copy() if p[name] is self.params[name] else p[name]
            p[name][i, j] = 0
        x = p["token_embed.embeddings"][tokens] + p["pos_embed.embeddings"][: tokens.shape[1]]
        for layer in range(self.n_layers):
            at = f"transformer/layer_{layer}"
            q, k, v = (x @ p[f"{at}/attn/{part}.w"] for part in ("query", "key", "value"))
            scores = q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            x = x + pattern @ v @ p[f"{at}/attn/linear.w"]
            x = x + np.maximum(x @ p[f"{at}/mlp/linear_1.w"], 0) @ p[f"{at}/mlp/linear_2.w"]
        return x

    def outputs(self, groups: Sequence[np.ndarray], cut: Iterable[Weight] = ()) -> np.ndarray:
        """What the program says behind the start token, all inputs in one row."""
        cut = list(cut)
        said = [(self.residual(tokens, cut) @ self.unembed)[:, 1:].ravel() for tokens in groups]
        return np.concatenate(said)


def some_of(program: Plain) -> list[np.ndarray]:
    """Up to 16 inputs of each length, spread over all."""
    alls = [program.inputs(length) for length in range(1, 6)]
    return [some[np.arange(min(16, len(some))) * len(some) // min(16, len(some))] for some in alls]


def needed(program: Plain, seed: int) -> set[Weight]:
    """What is left when everything goes that can go, neuron by neuron and weight by weight.

    In a random order. A neuron's weights go together first: one that only keeps a needless neuron
    quiet matters alone and not together with the rest.
    """
    groups, weights = some_of(program), program.weights()
    clean, rng = program.outputs(groups), np.random.default_rng(seed)
    neurons = [
        [w for w in weights if w[0].startswith(at) and (w[2] if "linear_1" in w[0] else w[1]) == n]
        for at in (f"transformer/layer_{layer}/mlp/" for layer in range(program.n_layers))
        for n in range(program.params["transformer/layer_0/mlp/linear_1.w"].shape[1])
    ]
    kept, before = set(weights), set()
    while kept != before:
        before = set(kept)
        singles = [[weight] for weight in weights]
        for units in (neurons, singles):
            for i in rng.permutation(len(units)):
                fewer = kept - set(units[i])
                if fewer != kept:
                    cut = set(weights) - fewer
                    if np.abs(program.outputs(groups, cut) - clean).max() < LARGEST:
                        kept = fewer
    return kept


def load(program: Plain) -> HookedSparseTransformer:
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, matrix in program.params.items():
        module, _, leaf = name.rpartition(".")
        params.setdefault(module, {})[leaf] = matrix
    return from_tracr(params, program.unembed, n_heads=program.data["n_heads"])


def task_of(
    name: str, model: HookedSparseTransformer, groups: Sequence[np.ndarray]
) -> SequenceTask:
    sequences = [tuple(row) for tokens in groups for row in tokens.tolist()]
    return SequenceTask.of_model(name, model, sequences, n_skipped=1)


@cache
def found(name: str) -> tuple[Plain, HookedSparseTransformer, Circuit]:
    program = Plain(name)
    model = load(program)
    task = task_of(name, model, some_of(program))
    return program, model, prune(model, task, zero_references(model), CONFIG, progress=False)


def as_weight(edge: Edge) -> Weight:
    """An edge under Haiku's names; there is one head."""
    names = {"q": "attn/query", "k": "attn/key", "v": "attn/value", "attn_out": "attn/linear"}
    names |= {"mlp_neuron": "mlp/linear_1", "mlp_out": "mlp/linear_2"}
    target = edge.target
    name = f"transformer/layer_{target.site.layer}/{names[target.site.name]}.w"
    return name, edge.source.channel, target.channel


def said(model: HookedSparseTransformer, groups: Sequence[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        parts = [model(torch.from_numpy(tokens))[:, 1:].flatten().numpy() for tokens in groups]
    return np.concatenate(parts)


NAMES = ("xproportion", "reverse")


@pytest.mark.parametrize(
    ("name", "nonzero", "size"), [("xproportion", 43, 1108), ("reverse", 234, 18755)]
)
def test_a_loaded_program_computes_what_tracr_computes(name, nonzero, size):
    program = Plain(name)
    model = load(program)
    assert sum(matrix.size for matrix in program.params.values()) == size
    assert sum(int((matrix != 0).sum()) for matrix in program.params.values()) == nonzero
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    for case in program.data["cases"]:
        tokens = np.array([case["tokens"]])
        logits, activations = model.run_with_cache(torch.from_numpy(tokens))
        theirs = full(case["residual"])
        np.testing.assert_allclose(activations[last][0], theirs, atol=2e-6)
        np.testing.assert_allclose(program.residual(tokens)[0], theirs, atol=2e-6)
        assert isinstance(logits, torch.Tensor)
        answers = logits[0, 1:]
        if name == "reverse":
            words = {i: int(word) for word, i in program.data["answers"].items()}
            assert [words[i] for i in answers.argmax(-1).tolist()] == case["decoded"]
        else:
            np.testing.assert_allclose(answers[:, 0].detach(), case["decoded"], atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_circuit_gives_the_program_s_own_output_on_every_input(name):
    program, model, circuit = found(name)
    groups = [program.inputs(length) for length in range(1, 6)]
    clean = program.outputs(groups)
    with only_circuit(model, circuit):
        assert np.abs(said(model, groups) - clean).max() < LARGEST
    cut = set(program.weights()) - {as_weight(edge) for edge in circuit.edges}
    assert np.abs(program.outputs(groups, cut) - clean).max() < LARGEST


@pytest.mark.parametrize(("name", "n_edges"), [("xproportion", 24), ("reverse", 118)])
def test_the_circuit_is_what_brute_force_removal_leaves_weight_for_weight(name, n_edges):
    program, _, circuit = found(name)
    weights = {as_weight(edge) for edge in circuit.edges}
    assert len(weights) == circuit.n_edges == n_edges
    for seed in range(2):  # whatever goes first
        assert needed(program, seed) == weights


def test_a_weight_that_matters_alone_and_is_not_in_the_circuit_only_keeps_a_neuron_quiet():
    program, _, circuit = found("reverse")
    groups, kept = some_of(program), {as_weight(edge) for edge in circuit.edges}
    clean = program.outputs(groups)
    alone = {
        weight
        for weight in program.weights()
        if np.abs(program.outputs(groups, [weight]) - clean).max() > LARGEST
    }
    assert kept <= alone
    assert len(alone - kept) == 10
    neurons = {(w[0][:20], w[2] if "linear_1" in w[0] else w[1]) for w in alone - kept}
    together = [
        w
        for w in program.weights()
        if (w[0][:20], w[2] if "linear_1" in w[0] else w[1]) in neurons and "mlp" in w[0]
    ]
    assert alone - kept <= set(together)
    assert not kept & set(together)
    assert np.abs(program.outputs(groups, together) - clean).max() < LARGEST


def task_means(model: HookedSparseTransformer, groups: Sequence[np.ndarray]) -> References:
    sites = site_map(model, final=True)
    sums = {info.site: torch.zeros(info.width).double() for info in sites.sites}
    for tokens in groups:
        _, activations = model.run_with_cache(torch.from_numpy(tokens))
        for info in sites.sites:
            sums[info.site] += activations[info.hook_name].reshape(-1, info.width).sum(0)
    n_positions = sum(tokens.size for tokens in groups)
    means = {site: total / n_positions for site, total in sums.items()}
    return References(means, "task_mean", model_hash(model), {})


def test_a_circuit_found_under_one_ablation_fails_under_another():
    program, model, circuit = found("reverse")
    groups = some_of(program)
    means = task_means(model, groups)
    values = {site: tuple(value.tolist()) for site, value in means.values.items()}
    with only_circuit(model, replace(circuit, references=values, ablation="task_mean")):
        assert np.abs(said(model, groups) - program.outputs(groups)).max() > 0.3


def test_what_tracr_did_not_compile_is_refused():
    program = Plain("xproportion")
    with pytest.raises(ValueError, match=r"that Tracr compiled.*Pass compiled.params"):
        from_tracr({"token_embed": {"embeddings": program.unembed}}, program.unembed)
    params = {name: {"w": matrix} for name, matrix in program.params.items()}
    with pytest.raises(ValueError, match="that Tracr compiled"):
        from_tracr(params, program.unembed)
