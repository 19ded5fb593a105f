"""SAEs spliced in as nodes: identity SAEs change nothing, and others do what plain torch does."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from coded import (
    ARCHITECTURES,
    ByHand,
    by_ends,
    coded_sites,
    identity_saes,
    make_sae,
    mirror_saes,
    random_saes,
)
from conftest import make_model
from test_pruning import QUICK, letters_task, planted_model

from tl_sparse import Circuit, HookedSparseTransformer, audit, only_circuit, prune
from tl_sparse.ablation import (
    References,
    gated,
    references,
    select_circuit,
    zero_references,
)
from tl_sparse.circuit import Node, Site
from tl_sparse.config import AuditConfig, SparsityConfig
from tl_sparse.model.prefixes import runs_on_prefixes
from tl_sparse.pruning import evaluate
from tl_sparse.pruning.trial import Trial
from tl_sparse.sae_arm import SplicedTransformer, edges_of_errors, splice
from tl_sparse.sae_baseline import with_saes
from tl_sparse.selection import interface_counts, nonzero_weights, select_nodes
from tl_sparse.sites import joint_matrix, model_hash, site_map

TINY: dict[str, Any] = {"n_layers": 2, "d_model": 8, "d_head": 4, "d_mlp": 12, "n_ctx": 8}
"""Small enough for an oracle that runs every target by itself."""

FAST = replace(QUICK, n_steps=40, n_edge_steps=20, max_exchange=6)
AUDIT = AuditConfig(n_random=4, n_subsets=4, n_adversarial_steps=3, n_examples=8, max_edges=4)


def tiny(**shape: Any) -> HookedSparseTransformer:
    every: dict[str, Any] = TINY | {"dtype": torch.float64} | shape
    return make_model(SparsityConfig(), **every)


@pytest.fixture(scope="module")
def model() -> HookedSparseTransformer:
    return tiny()


@pytest.fixture
def few_tokens() -> torch.Tensor:
    return torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(2))


def random_gates(spliced: Any, seed: int = 0, density: float = 0.5) -> dict[Site, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        info.site: (torch.rand(info.width, generator=generator) < density).double()
        for info in site_map(spliced).sites
    }


def random_values(spliced: Any, *before: int, seed: int = 1) -> dict[Site, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        info.site: torch.randn(*before, info.n_entries, generator=generator, dtype=torch.float64)
        for info in site_map(spliced).sites
    }


def random_edges(spliced: Any, seed: int = 2) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return {
        joint: (torch.rand(joint_matrix(spliced, joint).shape, generator=generator) < 0.6).double()
        for joint in site_map(spliced).joints
    }


# -- the raw-channel control: SAEs that are the identity ------------------------------------------


def noisy_planted() -> HookedSparseTransformer:
    """The model of the planted circuit, with small weights everywhere."""
    model = planted_model().double()
    model.cfg.dtype = torch.float64
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return model


def test_identity_saes_leave_weights_counts_and_references_as_they_are(corpus):
    model = make_model(SparsityConfig(weight_density=1 / 4), d_vocab=400, dtype=torch.float64)
    spliced = splice(model, identity_saes(model), errors=False)
    for ours, theirs in zip(site_map(spliced).joints, site_map(model).joints, strict=True):
        assert torch.equal(joint_matrix(spliced, ours), joint_matrix(model, theirs))
    channels = {info.site: (0, 3, 5) for info in site_map(model).sites}
    assert interface_counts(spliced, channels) == interface_counts(model, channels)
    mine = references(spliced, corpus, 2**9, progress=False)
    theirs = references(model, corpus, 2**9, progress=False)
    for site, values in theirs.values.items():
        torch.testing.assert_close(mine.values[site], values, rtol=0, atol=1e-12)


def test_identity_saes_leave_a_cut_model_as_it_is(few_tokens):
    model = tiny()
    spliced = splice(model, identity_saes(model), errors=False)
    gates, values = random_gates(model), random_values(model)
    edges, theirs = random_edges(spliced), random_edges(model)
    by_position = random_values(model, 3, 7)
    for some in (values, by_position):
        with gated(model, site_map(model), gates, some, theirs):
            expected = model(few_tokens)
        with gated(spliced, site_map(spliced), gates, some, edges):
            torch.testing.assert_close(spliced(few_tokens), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("method", "n_edges"), [("learned", 2), ("random", 60)])
def test_with_identity_saes_the_same_circuit_is_found_and_audited_alike(method, n_edges):
    """A small one that is learned and cleaned up, and a large one that chance puts together."""
    model, task = noisy_planted(), letters_task()
    spliced = splice(model, identity_saes(model), errors=False)
    large = method == "random"
    config = replace(FAST, method=method, tie_qk=large, drop_one=not large)
    circuits = [
        prune(each, task, zero_references(each), config, progress=False)
        for each in (model, spliced)
    ]
    plain, coded = circuits
    assert coded.nodes == plain.nodes
    assert len(plain.edges) >= n_edges
    for mine, theirs in zip(coded.edges, plain.edges, strict=True):
        assert (mine.source, mine.target) == (theirs.source, theirs.target)
        assert mine.weight == pytest.approx(theirs.weight, rel=1e-12)
    for name, loss in plain.losses.items():
        assert coded.losses[name] == pytest.approx(loss, abs=1e-9)
    assert (coded.n_interface, coded.n_biases) == (plain.n_interface, plain.n_biases)
    if large:
        return
    reports = [
        audit(each, circuit, task, config=AUDIT, progress=False)
        for each, circuit in ((model, plain), (spliced, coded))
    ]
    assert len(reports[0].findings) > 10
    for theirs, mine in zip(*(report.findings for report in reports), strict=True):
        assert mine.name == theirs.name
        assert mine.value == pytest.approx(theirs.value, abs=1e-6, nan_ok=True)


def test_the_planted_circuit_is_found_among_the_latents_of_identity_saes():
    model = planted_model()
    spliced = splice(model, identity_saes(model))
    circuit = prune(spliced, letters_task(), zero_references(spliced), FAST, progress=False)
    read, value, write = "0.attn_in.0", "0.v.2", "0.attn_out.5"
    assert [str(node) for node in circuit.nodes] == [read, value, write]
    found = [(str(e.source), str(e.target), e.weight) for e in circuit.edges]
    assert found == [(read, value, 1.0), (value, write, 2.0)]
    assert edges_of_errors(circuit, spliced) == []


# -- SAEs that are not --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_every_node_in_it_is_the_unspliced_model(architecture, model, few_tokens):
    spliced = splice(model, random_saes(model, architecture))
    torch.testing.assert_close(spliced(few_tokens), model(few_tokens), rtol=0, atol=1e-11)
    gates = {info.site: torch.ones(info.width).double() for info in site_map(spliced).sites}
    edges = {joint: torch.ones_like(kept) for joint, kept in random_edges(spliced).items()}
    with gated(spliced, site_map(spliced), gates, random_values(spliced), edges):
        wide = spliced(few_tokens)
    torch.testing.assert_close(wide, model(few_tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_errors_it_is_saelens_own_splice(architecture, model, few_tokens):
    saes = random_saes(model, architecture)
    expected = with_saes(model).run_with_saes(few_tokens, saes=list(saes.values()))
    left_out = splice(model, saes, errors=False)
    torch.testing.assert_close(left_out(few_tokens), expected, rtol=0, atol=1e-11)
    spliced = splice(model, saes)
    gates = {info.site: torch.ones(info.width).double() for info in site_map(spliced).sites}
    for site, sae in saes.items():
        gates[site][sae.cfg.d_sae] = 0
    zeros = zero_references(spliced).values
    with gated(spliced, site_map(spliced), gates, zeros):
        torch.testing.assert_close(spliced(few_tokens), expected, rtol=0, atol=1e-11)
    assert not torch.allclose(expected, model(few_tokens))


@pytest.mark.parametrize("values", ["constant", "by position"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cut_nodes_and_edges_do_what_every_target_run_by_itself_does(
    architecture, values, model, few_tokens
):
    """Also through the activation function, where each latent has neurons of its own view."""
    saes = random_saes(model, architecture)
    spliced = splice(model, saes)
    gates, edges = random_gates(spliced), random_edges(spliced)
    before = few_tokens.shape if values == "by position" else ()
    some = random_values(spliced, *before)
    expected = ByHand(model, saes, gates, by_ends(edges), some).logits(few_tokens)
    with gated(spliced, site_map(spliced), gates, some, edges):
        torch.testing.assert_close(spliced(few_tokens), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(spliced(few_tokens), model(few_tokens), rtol=0, atol=1e-11)


def test_some_sites_can_keep_their_channels(model, few_tokens):
    every = random_saes(model, "topk")
    saes = {site: sae for site, sae in every.items() if site.name in ("mlp_in", "attn_out")}
    saes |= {site: every[site] for site in every if site == Site(1, "mlp_neuron")}
    spliced = splice(model, saes)
    gates, edges, values = random_gates(spliced), random_edges(spliced), random_values(spliced)
    expected = ByHand(model, saes, gates, by_ends(edges), values).logits(few_tokens)
    with gated(spliced, site_map(spliced), gates, values, edges):
        torch.testing.assert_close(spliced(few_tokens), expected, rtol=0, atol=1e-10)


def test_a_model_of_one_neuron_and_three_latents_is_cut_as_by_pencil():
    """A read of 1; two latents of it, +1 and -1, and a dead third; the neuron's latent is twice it.

    x = 1 -> latents (1, 0, 0), error 0 -> neuron gelu(3) -> write -> logit.
    """
    shape: dict[str, Any] = {"n_layers": 1, "d_model": 4, "d_head": 4, "d_mlp": 1, "d_vocab": 4}
    model = make_model(random=False, dtype=torch.float64, **shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:] = torch.ones(4)  # the norm leaves it: every read is 1, 1, 1, 1
        model.blocks[0].mlp.W_in[0, 0] = 3.0
        model.blocks[0].mlp.W_out[0, 1] = 1.0
        model.unembed.W_U[1, 1] = 1.0
    read = make_sae("standard", "blocks.0.hook_mlp_read", 4, 3)
    neuron = make_sae("standard", "blocks.0.mlp.hook_post", 1, 3)
    with torch.no_grad():
        for sae in (read, neuron):
            for parameter in sae.parameters():
                parameter.zero_()
        read.W_enc[0, 0], read.W_enc[0, 1] = 1.0, -1.0
        read.W_dec[0, 0], read.W_dec[1, 0] = 1.0, -1.0
        neuron.W_enc[0, 0], neuron.W_dec[0, 0] = 2.0, 0.5
    spliced = splice(model, [read, neuron])
    (joint,) = (j for j in site_map(spliced).joints if j.target == Site(0, "mlp_neuron"))
    linear = joint_matrix(spliced, joint)
    assert linear[:2, 0].tolist() == [6.0, -6.0]  # 1 x 3 x 2
    assert linear[3, 0].item() == 6.0  # of the error, whose first entry has all of it
    values = zero_references(spliced).values
    values[Site(0, "mlp_in")][0] = 0.25
    tokens = torch.zeros(1, 1, dtype=torch.long)

    def written(edge: tuple[int, int] | None, out: int | None = None) -> float:
        gate = torch.ones_like(linear)
        if edge is not None:
            gate[edge] = 0
        nodes = {Site(0, "mlp_in"): torch.ones(4).double()}
        if out is not None:
            nodes[Site(0, "mlp_in")][out] = 0
        with gated(spliced, site_map(spliced), nodes, values, {joint: gate}):
            return spliced.run_with_cache(tokens)[1]["blocks.0.hook_mlp_out"][0, 0, 1].item()

    def gelu(x: float) -> float:
        return torch.nn.functional.gelu(torch.tensor(x, dtype=torch.float64)).item()

    assert written(None) == pytest.approx(gelu(3), rel=1e-4)
    assert written(None, out=0) == pytest.approx(gelu(0.75), rel=1e-4)
    # The latent sees 0.25; the error sees 1, which its own latent explains: nothing is left of it.
    assert written((0, 0)) == pytest.approx(gelu(0.75), rel=1e-4)
    # The error alone sees 0.25, and its own latent explains that: nothing changes.
    assert written((0, 3)) == pytest.approx(gelu(3), rel=1e-4)
    assert written((1, 0)) == pytest.approx(gelu(3), rel=1e-4)  # off, and 0 where it is cut


def test_gradients_of_gates_match_finite_differences(model, few_tokens):
    saes = random_saes(model, "standard")
    spliced = splice(model, saes)
    sites, values = site_map(spliced), random_values(spliced)
    generator = torch.Generator().manual_seed(5)
    gates: dict[Any, torch.Tensor] = {
        key: (0.3 + 0.4 * torch.rand(gate.shape, generator=generator)).double()
        for key, gate in [*random_gates(spliced).items(), *random_edges(spliced).items()]
    }

    def loss(changed: dict[Any, torch.Tensor]) -> torch.Tensor:
        nodes = {key: gate for key, gate in changed.items() if isinstance(key, Site)}
        edges = {key: gate for key, gate in changed.items() if not isinstance(key, Site)}
        with gated(spliced, sites, nodes, values, edges):
            return spliced(few_tokens, return_type="loss")

    leaves = {key: gate.clone().requires_grad_() for key, gate in gates.items()}
    found = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    for key, gradient in found.items():
        for place in ((0,) * gradient.ndim, tuple(n - 1 for n in gradient.shape)):  # latent, error
            up, down = gates[key].clone(), gates[key].clone()
            up[place] += 1e-6
            down[place] -= 1e-6
            difference = (loss(gates | {key: up}) - loss(gates | {key: down})).item() / 2e-6
            assert gradient[place].item() == pytest.approx(difference, rel=1e-4, abs=1e-8)


def test_edges_that_are_not_to_be_learned_do_not_change_the_run_or_the_other_gradients(
    model, few_tokens
):
    spliced = splice(model, random_saes(model, "topk"))
    sites, gates = site_map(spliced), random_gates(spliced)
    values, edges = random_values(spliced), random_edges(spliced)
    learned = {joint: kept.bool() & (torch.arange(len(kept)) < 4)[:, None]
               for joint, kept in edges.items()}  # fmt: skip
    results = []
    for told in (None, learned):
        leaves = {joint: gate.clone().requires_grad_() for joint, gate in edges.items()}
        with gated(spliced, sites, gates, values, leaves, told):
            loss = spliced(few_tokens, return_type="loss")
        grads = torch.autograd.grad(loss, list(leaves.values()))
        at = {j: g[learned[j]] for j, g in zip(leaves, grads, strict=True)}
        results.append((loss.detach(), at))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    for joint, gradient in results[0][1].items():
        between = gates[joint.source][:, None] * gates[joint.target]
        some = between[learned[joint]].bool()
        torch.testing.assert_close(gradient[some], results[1][1][joint][some], rtol=0, atol=1e-12)


def test_virtual_edges_are_counted_as_three_loops_count_them():
    """An edge is a triple product decoder x W x encoder that is not zero."""
    shape: dict[str, Any] = TINY | {"n_layers": 1}
    model = make_model(SparsityConfig(weight_density=1 / 16), **shape)
    saes = random_saes(model, "standard", d_sae=3)
    generator = torch.Generator().manual_seed(0)
    for sae in saes.values():
        with torch.no_grad():
            for weight in (sae.W_enc, sae.W_dec):
                weight.mul_(torch.rand(weight.shape, generator=generator) < 0.2)
    spliced = splice(model, saes)
    weights, total = nonzero_weights(spliced, site_map(spliced)), 0
    for joint, live in weights.items():
        w = model.get_parameter(joint.weight).detach()
        if joint.target.name == "attn_out":
            w = w.flatten(0, 1)
        elif w.ndim == 3:
            w = w.transpose(0, 1).flatten(1)
        parts_in = parts(saes.get(joint.source), "W_dec", w.shape[0])
        parts_out = parts(saes.get(joint.target), "W_enc", w.shape[1])
        for s, source in enumerate(parts_in):
            for t, target in enumerate(parts_out):
                joined = any(
                    float(a[i] * w[i, o] * b[o]) != 0
                    for a in source
                    for b in target
                    for i in range(w.shape[0])
                    for o in range(w.shape[1])
                )
                assert bool(live[s, t]) == joined, (joint, s, t)
                total += joined
    kept = {info.site: torch.ones(info.width, dtype=torch.bool) for info in site_map(spliced).sites}
    selection = select_nodes(kept, weights)
    assert 0 < selection.n_edges <= total
    assert selection.n_edges == len(selection.edge_list(spliced))


def parts(sae: Any, name: str, n: int) -> list[list[torch.Tensor]]:
    """For each node of a site the vectors that it has over the site's channels."""
    eye = list(torch.eye(n))
    if sae is None:
        return [[one] for one in eye]
    rows = getattr(sae, name).detach().float()
    return [[row] for row in (rows if name == "W_dec" else rows.T)] + [eye]


# -- circuits of latents -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> tuple[HookedSparseTransformer, SplicedTransformer, Any, Circuit]:
    """A latent for each channel and sign, and some noise; the circuit is not cleaned up."""
    model, task = noisy_planted(), letters_task()
    spliced = splice(model, mirror_saes(model))
    config = replace(FAST, drop_one=False, n_edge_steps=50)
    circuit = prune(spliced, task, zero_references(spliced), config, progress=False)
    return model, spliced, task, circuit


def test_a_circuit_of_latents_has_the_loss_that_the_oracle_gives_it(found):
    model, spliced, task, circuit = found
    saes = mirror_saes(model)
    assert circuit.n_edges > 3
    sites = site_map(spliced)
    selection = select_circuit(circuit, sites, torch.device("cpu"))
    like = torch.zeros(1, dtype=torch.float64)
    edges = selection.edge_gates(like, nonzero_weights(spliced, sites))
    values = zero_references(spliced).values
    by_hand = ByHand(model, saes, selection.node_gates(like), by_ends(edges), values)
    batch = task.batch("test", range(task.n_examples("test")))
    logits = by_hand.logits(batch.tokens)[torch.arange(len(batch.tokens)), batch.last]
    assert task.loss(logits, batch).item() == pytest.approx(circuit.losses["test"], abs=1e-8)
    with only_circuit(spliced, circuit):
        here = task.logits(spliced, batch)
    torch.testing.assert_close(here, logits, rtol=0, atol=1e-9)


def test_prompts_run_as_a_tree_of_prefixes_here_too(found):
    _, spliced, task, circuit = found
    assert runs_on_prefixes(spliced)
    selection = select_circuit(circuit, site_map(spliced), torch.device("cpu"))
    trial = Trial(spliced, task, site_map(spliced), zero_references(spliced))
    on_tree = trial.evaluate(selection, "test")[0]
    batch = task.batch("test", range(task.n_examples("test")))
    with only_circuit(spliced, circuit):
        plain = task.loss(task.logits(spliced, batch), batch).item()
    assert on_tree == pytest.approx(plain, abs=1e-10)


def test_a_circuit_of_latents_is_a_file_like_another(found, tmp_path, few_tokens):
    model, spliced, _, circuit = found
    circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    assert again == circuit
    assert circuit.provenance["saes"]["0.attn_in"] == "64 relu latents, error"
    assert len(circuit.references[Site(0, "attn_in")]) == 64 + 32
    other = splice(model, mirror_saes(model))
    tokens = few_tokens % 26
    with only_circuit(other, again):
        first = other(tokens)
    with only_circuit(spliced, circuit):
        assert torch.equal(spliced(tokens), first)
    with pytest.raises(ValueError, match="found in another model"), only_circuit(model, again):
        pass


def test_an_audit_of_latents_runs_and_knows_the_error(found):
    _, spliced, task, circuit = found
    error = Node(Site(0, "attn_in"), 64)
    if error not in circuit.nodes:
        circuit = replace(circuit, nodes=(*circuit.nodes, error))
    report = audit(spliced, circuit, task, config=AUDIT, progress=False)
    claims = {finding.claim for finding in report.findings}
    assert {"sufficient", "necessary", "robust", "same mechanism", "minimal"} <= claims
    assert json.dumps(report.to_dict())


def test_edges_of_errors_are_told(found):
    _, spliced, _, circuit = found
    told = edges_of_errors(circuit, spliced)
    n_error = {site: coder.n_latents for site, coder in spliced.coders.items()}
    expected = [
        e
        for e in circuit.edges
        if e.source.channel == n_error.get(e.source.site)
        or e.target.channel == n_error.get(e.target.site)
    ]
    assert told == expected


def test_what_reads_nodes_as_channels_refuses_latents(found):
    _, spliced, task, circuit = found
    for read in (lambda: circuit.explain(spliced, task), lambda: circuit.compile(spliced)):
        with pytest.raises(ValueError, match="one of SAE latents"):
            read()
    with pytest.raises(ValueError, match="are SAE latents"):
        circuit.to_networkx(residual=True)
    assert circuit.to_networkx().number_of_edges() == circuit.n_edges


# -- the spliced model ---------------------------------------------------------------------------


def test_the_model_shares_its_parameters_and_stays_as_it_is(model, few_tokens):
    before, names = model(few_tokens), dict(model.named_parameters())
    spliced = splice(model, random_saes(model, "topk"))
    for name, parameter in names.items():
        assert spliced.get_parameter(name) is parameter
    assert dict(model.named_parameters()).keys() == names.keys()
    assert torch.equal(model(few_tokens), before)
    assert not hasattr(model, "coders")


def test_hash_and_copies_know_the_saes(model, few_tokens):
    saes = random_saes(model, "topk")
    spliced = splice(model, saes)
    own = model_hash(spliced)
    assert own == model_hash(splice(model, saes)) == model_hash(copy.deepcopy(spliced))
    others = {model_hash(model), model_hash(splice(model, saes, errors=False))}
    fewer = copy.deepcopy(saes)
    fewer[Site(0, "mlp_in")].cfg.k = 2
    others.add(model_hash(splice(model, fewer)))
    assert len(others | {own}) == 4
    with torch.no_grad():
        clone = copy.deepcopy(spliced)
        clone.blocks[0].mlp.W_in.mul_(2)
    assert model_hash(clone) != own
    assert torch.equal(copy.deepcopy(spliced)(few_tokens), spliced(few_tokens))
    with pytest.raises(ValueError, match="keep the SAEs' own folders"):
        spliced.save("nowhere")


def test_an_error_inside_leaves_the_model_as_it_was(model, few_tokens):
    spliced = splice(model, random_saes(model, "topk"))
    before = spliced(few_tokens)
    with (
        pytest.raises(ZeroDivisionError),
        gated(spliced, site_map(spliced), {}, random_values(spliced), random_edges(spliced)),
    ):
        raise ZeroDivisionError
    assert torch.equal(spliced(few_tokens), before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hook_name": "blocks.0.hook_resid_mid"}, "no site that takes one"),
        ({"hook_name": "blocks.0.attn.hook_q"}, "Queries, keys and values keep their channels"),
        ({"hook_name": None}, "no site that takes one"),
        ({"hook_name": "blocks.7.hook_attn_out"}, "no site that takes one"),
        ({"hook_name": "blocks.0.mlp.hook_post"}, "has 8 inputs, and this model has 12"),
        ({"hook_head_index": 1}, "is of head 1"),
        ({"tl_sparse_model_hash": "0" * 64}, "trained on another model"),
        ({"hook_name_out": "blocks.0.hook_mlp_out"}, "can't be spliced in"),
    ],
)
def test_an_sae_of_another_place_is_refused(change, says, model):
    sae = make_sae("topk", "blocks.0.hook_attn_out", 8, 6)
    for name, value in change.items():
        sae.cfg.metadata[name] = value
    with pytest.raises(ValueError, match=says):
        splice(model, [sae])


def test_other_things_that_are_no_saes_for_this_are_refused(model):
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    name = "blocks.0.hook_attn_out"
    sae = make_sae("topk", name, 8, 6)
    trainers = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=6, k=2))
    with pytest.raises(ValueError, match="for inference, got TopKTrainingSAE"):
        splice(model, [trainers])
    with pytest.raises(ValueError, match="for inference, got str"):
        splice(model, ["an SAE"])
    with pytest.raises(ValueError, match="Two SAEs are for 0"):
        splice(model, [sae, sae])
    with pytest.raises(ValueError, match="There is no SAE"):
        splice(model, [])
    normalising = make_sae("topk", name, 8, 6)
    normalising.cfg.normalize_activations = "layer_norm"
    with pytest.raises(ValueError, match="normalises each activation"):
        splice(model, [normalising])
    with pytest.raises(ValueError, match="without SAEs, got SplicedTransformer"):
        splice(splice(model, [sae]), [sae])
    sparse = make_model(SparsityConfig(activation_density=1 / 2), **TINY)
    with pytest.raises(ValueError, match="stands between the weights and the SAE"):
        splice(sparse, [sae])
    reads = make_sae("topk", "blocks.0.hook_attn_read", 8, 6)
    tokens = torch.arange(5)[None]
    torch.testing.assert_close(splice(sparse, [reads])(tokens), sparse(tokens))


def test_references_of_the_model_are_refused_for_the_spliced_one(model):
    spliced = splice(model, random_saes(model, "topk"))
    plain: References = zero_references(model)
    with pytest.raises(ValueError, match="measured on another model"):
        prune(spliced, letters_task(), plain, FAST, progress=False)


def test_the_whole_spliced_model_scores_like_the_model_on_a_task():
    model, task = tiny(d_vocab=26), letters_task()
    spliced = splice(model, random_saes(model, "jumprelu"))
    assert coded_sites(model)
    assert evaluate(spliced, task, "test")[0] == pytest.approx(evaluate(model, task, "test")[0])
