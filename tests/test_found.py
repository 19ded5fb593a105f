"""Found models: their weights copied, their nodes and edges cut, against plain torch."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from conftest import make_model
from llama import Llama
from transformer_lens import HookedTransformer
from transformers import LlamaConfig, LlamaForCausalLM

from tl_sparse import PruningConfig, audit, found, prune, tasks
from tl_sparse.ablation import gated, only_circuit, pair_references, zero_references
from tl_sparse.circuit import Circuit, Node, Site
from tl_sparse.config import AuditConfig
from tl_sparse.explain import explain
from tl_sparse.exports import to_mib
from tl_sparse.found import from_llama, load_smollm2
from tl_sparse.resampling import values_on
from tl_sparse.selection import nonzero_weights, select_nodes
from tl_sparse.sites import joint_matrix, site_map

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
    mlp, attention = model.blocks[1].mlp, model.blocks[1].attn
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
