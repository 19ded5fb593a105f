"""Which tokens write into a circuit and which logits read it, against plain recounts."""

import pytest
import torch
from conftest import make_model, write_edges

from tl_sparse.circuit import Circuit, Edge, Node
from tl_sparse.config import SparsityConfig
from tl_sparse.interface import InterfaceWeights, held_weights, interface_weights
from tl_sparse.selection import interface_counts
from tl_sparse.sites import model_hash, site_map
from tl_sparse.tasks import Pair, PairTask

EDGES = [
    ("0.attn_in.2", "0.v.9", 0.75),
    ("0.v.9", "0.attn_out.4", 1.25),
    ("1.mlp_in.4", "1.mlp_neuron.40", -0.5),
    ("1.mlp_in.2", "1.mlp_neuron.40", 0.5),
    ("1.mlp_neuron.40", "1.mlp_out.7", 2.0),
]


class Letters:
    """A tokenizer whose tokens are single characters from '!' on."""

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) - 33 for letter in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def circuit_of(model, edges=EDGES, more=()) -> Circuit:
    write_edges(model, edges)
    found = tuple(Edge(Node.parse(a), Node.parse(b), w) for a, b, w in edges)
    nodes = {node for edge in found for node in (edge.source, edge.target)}
    nodes |= {Node.parse(name) for name in more}
    channels = {n.site: tuple(m.channel for m in nodes if m.site == n.site) for n in nodes}
    return Circuit(
        nodes=tuple(nodes),
        edges=found,
        references={i.site: (0.5,) * i.width for i in site_map(model, final=True).sites},
        task="toy",
        model_hash=model_hash(model),
        n_interface=interface_counts(model, channels)[0],
    )


def recount(model, circuit) -> tuple[set, set]:
    """Every (token, channel, value), entry by entry, from the text of the circuit's nodes."""
    names = [str(node).split(".") for node in circuit.nodes]
    reads = {int(c) for _, site, c in names if site in ("attn_in", "mlp_in")}
    writes = {int(c) for _, site, c in names if site in ("attn_out", "mlp_out")}
    w_e, w_u = model.embed.W_E.tolist(), model.unembed.W_U.tolist()
    d_model, d_vocab = len(w_u), len(w_u[0])
    into = {(t, c, w_e[t][c]) for t in range(d_vocab) for c in reads if c < d_model}
    out = {(t, c, w_u[c][t]) for t in range(d_vocab) for c in writes}
    return {e for e in into if e[2]}, {e for e in out if e[2]}


@pytest.mark.parametrize("positions", [0, 5])
def test_the_weights_are_those_of_a_plain_recount_and_as_many_as_the_circuit_counts(positions):
    sparse = SparsityConfig(weight_density=0.3, embedding_density=0.2, position_channels=positions)
    model = make_model(sparse, positional_embedding_type="none")
    edges = [*EDGES, ("0.attn_in.34", "0.v.9", 3.0)] if positions else EDGES
    circuit = circuit_of(model, edges, more=["0.mlp_in.30", "0.attn_out.7"])
    found = interface_weights(circuit, model)
    into, out = recount(model, circuit)
    assert {(w.token, w.channel, w.value) for w in found.embedding} == into
    assert {(w.token, w.channel, w.value) for w in found.unembedding} == out
    assert (len(found.embedding), len(found.unembedding)) == (len(into), len(out))
    assert len(found) == circuit.n_interface == len(into) + len(out)
    assert min(len(into), len(out)) > 10
    for weights in (found.embedding, found.unembedding):
        sizes = [abs(w.value) for w in weights]  # no gains here
        assert sizes == sorted(sizes, reverse=True)
    nodes = {w.channel: [name for name, _ in w.effects] for w in found.embedding}
    assert nodes == {2: ["0.attn_in.2", "1.mlp_in.2"], 4: ["1.mlp_in.4"], 30: ["0.mlp_in.30"]}


def pencil() -> tuple:
    """One read, one write, three tokens that touch them: the rest of the model is zero."""
    model = make_model(n_layers=1, d_vocab=50, normalization_type="RMS", random=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("blocks.0.ln2.w")[4] = 0.5
        model.get_parameter("ln_final.w")[7] = 4.0
        model.embed.W_E[1, 4], model.embed.W_E[2, 4], model.embed.W_E[3, 5] = 1.5, -2.0, 9.0
        model.unembed.W_U[7, 6], model.unembed.W_U[4, 6] = -0.25, 9.0
    edges = [("0.mlp_in.4", "0.mlp_neuron.3", 1.0), ("0.mlp_neuron.3", "0.mlp_out.7", 1.0)]
    return model, edges


def test_gains_are_in_the_effects_and_the_table_says_so():
    model, edges = pencil()
    model.tokenizer = Letters()  # pyright: ignore[reportAttributeAccessIssue]  # a stand-in
    circuit = circuit_of(model, edges)
    found = interface_weights(circuit, model)
    assert [(w.token, w.text, w.value, w.effects) for w in found.embedding] == [
        (2, "'#'", -2.0, (("0.mlp_in.4", -1.0),)),
        (1, "'\"'", 1.5, (("0.mlp_in.4", 0.75),)),
    ]
    (logit,) = found.unembedding
    assert (logit.token, logit.channel, logit.value) == (6, 7, -0.25)
    assert logit.effects == (("0.mlp_out.7", -1.0),)
    assert repr(found) == "InterfaceWeights(toy: 2 of W_E, channels 4; 1 of W_U, channels 7)"
    lines = [line.split() for line in str(found).splitlines()]
    assert ["'#'", "4", "-2", "0.mlp_in.4", "(-1", "after", "the", "gain)"] in lines
    assert [row["nodes"] for row in found.rows()] == [["0.mlp_in.4"]] * 2 + [["0.mlp_out.7"]]
    assert found.render(max_rows=1).count("and 1 more") == 1


def test_a_tasks_tokens_are_marked_and_stand_first():
    model, edges = pencil()
    tokenizer: object = Letters()
    task = PairTask(
        "toy",
        {
            "train": [Pair(('$"', "$%"), ("'", "("))],
            "validation": [Pair(('$$"', "$$%"), ("'", "("))],
            "test": [Pair(('$$$"', "$$$%"), ("'", "("))],
        },
        tokenizer=tokenizer,
    )
    found = interface_weights(circuit_of(model, edges), model, task)
    assert [(w.token, w.in_task) for w in found.embedding] == [(2, False), (1, True)]
    assert [(w.token, w.in_task) for w in found.unembedding] == [(6, True)]  # the answer '
    text = found.render(max_rows=1)
    assert "* token 1" in text
    assert "token 2" not in text


def test_a_masked_final_read_stands_between_write_and_logit():
    model, edges = pencil()
    kept = interface_weights(circuit_of(model, edges, more=["1.final_in.7"]), model)
    assert kept.unembedding[0].effects == (("1.final_in.7", -1.0),)
    cut = interface_weights(circuit_of(model, edges, more=["1.final_in.8"]), model)
    assert [(w.channel, w.effects) for w in cut.unembedding] == [(7, ())]  # counted, without effect


def test_held_weights_are_all_that_are_no_edges():
    model = make_model(SparsityConfig(weight_density=0.3))
    circuit = circuit_of(model)
    n_edges = 0
    for joint in site_map(model).joints:
        held = held_weights(circuit, model, joint)
        matrix = model.get_parameter(joint.weight).detach().double()
        if matrix.ndim == 3 and joint.target.name != "attn_out":
            matrix = torch.cat(list(matrix), dim=1)
        matrix = matrix.reshape(held.shape)
        moved = (held != matrix).nonzero().tolist()
        n_edges += len(moved)
        assert {(joint.source, a, joint.target, b) for a, b in moved} == {
            (e.source.site, e.source.channel, e.target.site, e.target.channel)
            for e in circuit.edges
            if (e.source.site, e.target.site) == (joint.source, joint.target)
        }
        assert all(held[a, b] == 0 for a, b in moved)
    assert n_edges == len(EDGES)


def test_a_circuit_of_another_model_is_refused():
    model, edges = pencil()
    circuit = circuit_of(model, edges)
    with torch.no_grad():
        model.embed.W_E[0, 0] = 1.0
    with pytest.raises(ValueError, match="found in another model"):
        interface_weights(circuit, model)
    empty = interface_weights(circuit_of(model, []), model)
    assert isinstance(empty, InterfaceWeights)
    assert len(empty) == 0
