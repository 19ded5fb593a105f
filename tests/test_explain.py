import json
import re
import time
from dataclasses import replace

import pytest
import torch
from conftest import write_edges

from tl_sparse.circuit import Circuit, Edge, Node
from tl_sparse.explain import explain
from tl_sparse.interface import readout_nodes, residual_links
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.sites import model_hash, site_map
from tl_sparse.tasks.base import Pair, PairTask


class Letters:
    """A tokenizer whose tokens are single characters."""

    alphabet = "ab()'\"x\u202e\0\n"

    def encode(self, text, add_special_tokens=False):
        return [self.alphabet.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids)


def node(text: str) -> Node:
    return Node.parse(text)


def pencil_model(n_layers: int = 1, **cfg) -> HookedSparseTransformer:
    """A model whose weights are all zero but those that a test writes."""
    shape = dict(d_model=6, d_head=2, n_heads=2, d_mlp=4, n_ctx=8, d_vocab=10, act_fn="gelu",
                 normalization_type="RMSPre", positional_embedding_type="none", device="cpu",
                 default_prepend_bos=False)  # fmt: skip
    model = HookedSparseTransformer(shape | {"n_layers": n_layers} | cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def circuit_of(model, nodes, edges, reference: float = 0.0, **fields) -> Circuit:
    """A circuit by the names of its nodes; its edges are written into the model."""
    write_edges(model, edges)
    references = {i.site: (reference,) * i.width for i in site_map(model, final=True).sites}
    return Circuit(
        nodes=tuple(map(node, nodes)),
        edges=tuple(Edge(node(a), node(b), w) for a, b, w in edges),
        references=references,
        task="quotes",
        model_hash=model_hash(model),
        **fields,
    )


@pytest.fixture
def quotes():
    """`'` against `"`: one neuron, one head; every number is written here by hand."""
    model = pencil_model()
    with torch.no_grad():
        block = model.blocks[0]
        model.embed.W_E[4, 2], model.embed.W_E[5, 2], model.embed.W_E[7, 2] = 1.5, -0.75, 0.25
        block.attn.W_V[1, 2, 0] = 2.0  # attn_in 2 -> head 1 v0, node v.2
        block.attn.W_V[1, 3, 0] = 8.0  # attn_in 3 is not in the circuit
        block.attn.W_K[1, 2, 1] = 1.25
        block.attn.b_K[1, 1] = -0.125
        block.attn.W_O[1, 0, 4] = -0.5
        block.mlp.W_in[4, 3] = 3.0
        model.get_parameter("blocks.0.mlp.b_in")[3] = 0.375
        block.mlp.W_out[3, 1] = 0.625
        model.unembed.W_U[1, 0], model.unembed.W_U[1, 1] = 0.875, -1.125
    task = PairTask(
        "quotes",
        {
            "train": [Pair(("x'", 'x"'), ("a", "b"))],
            "validation": [Pair(("xx'", 'xx"'), ("a", "b"))],
            "test": [Pair(("xxx'", 'xxx"'), ("a", "b"))],
        },
        tokenizer=Letters(),
    )
    edges = [
        ("0.attn_in.2", "0.v.2", 2.0),
        ("0.attn_in.2", "0.k.3", 1.25),
        ("0.v.2", "0.attn_out.4", -0.5),
        ("0.mlp_in.4", "0.mlp_neuron.3", 3.0),
        ("0.mlp_neuron.3", "0.mlp_out.1", 0.625),
    ]
    nodes = sorted({name for a, b, _ in edges for name in (a, b)})
    model.tokenizer = Letters()  # pyright: ignore[reportAttributeAccessIssue]  # a stand-in
    return model, task, circuit_of(model, nodes, edges, reference=0.5)


def test_every_number_of_a_pencil_and_paper_circuit_is_found(quotes):
    model, task, circuit = quotes
    found = {n.node: n for n in explain(circuit, model, task).nodes}
    read = found["0.attn_in.2"]
    assert read.highest == (('"\'"', 1.5), ("'\\u202e'", 0.25))
    assert read.lowest == (("'\"'", -0.75),)
    assert read.task_tokens == (('"\'"', 1.5), ("'\"'", -0.75))
    assert (read.n_tokens, read.written_by) == (3, ())
    assert sorted(read.outputs) == [("0.k.3", 1.25), ("0.v.2", 2.0)]
    assert found["0.v.2"].head == 1
    assert found["0.v.2"].inputs == (("0.attn_in.2", 2.0),)
    assert found["0.v.2"].constant == 8.0 * 0.5  # attn_in 3 held at 0.5
    assert (found["0.k.3"].bias, found["0.k.3"].constant) == (-0.125, 0.0)
    assert found["0.attn_out.4"].read_by == ("0.mlp_in.4",)
    assert found["0.mlp_in.4"].written_by == ("0.attn_out.4",)
    assert found["0.mlp_neuron.3"].bias == 0.375
    assert found["0.mlp_out.1"].logits == (("'a'", 0.875), ("'b'", -1.125))
    assert found["0.attn_out.4"].logits == (("'a'", 0.0), ("'b'", 0.0))


def test_a_head_tells_which_of_its_channels_are_live_and_what_holds_the_others(quotes):
    model, task, circuit = quotes
    (head,) = explain(circuit, model, task).heads
    assert (head.layer, head.head, head.sink) == (0, 1, None)
    assert head.scale == pytest.approx(2**0.5)
    assert head.channels == ((1, 0.5, None),)  # k.3 is head 1's k1; its q is held
    assert head.constant_score == pytest.approx(0.25 / 2**0.5)  # channel 0: 0.5 x 0.5


def test_the_text_follows_the_forward_pass(quotes):
    model, task, circuit = quotes
    text = str(explain(circuit, model, task))
    order = ["layer 0, attention", "reads channel 2", "head 1", "writes channel 4 = -",
             "layer 0, MLP", "reads channel 4", "written before by 0.attn_out.4",
             "neuron 3 = gelu(3 x read 4 "
             "+ 0.375 bias)", "writes channel 1 = 0.625 x neuron 3", "logits",
             "'a' +0.875, 'b' -1.12; difference +2"]  # fmt: skip
    places = [text.find(words) for words in order]
    assert -1 not in places, (order[places.index(-1)], text)
    assert places == sorted(places)
    assert "head 1 v0 = 2 x read 2 + 4 from what is held" in text
    assert "q1 held at +0.5" in text


def test_control_characters_never_reach_the_text(quotes):
    model, task, circuit = quotes
    with torch.no_grad():
        model.embed.W_E[8, 2], model.embed.W_E[7, 2] = 9.0, 8.0
    circuit = circuit_of(
        model, map(str, circuit.nodes), [(str(a), str(b), w) for a, b, w in circuit.edges]
    )
    text = str(explain(circuit, model, task))
    assert "'\\x00' +9" in text
    assert "'\\u202e' +8" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_every_edge_is_a_row_and_the_whole_is_json(quotes):
    model, task, circuit = quotes
    explanation = explain(circuit, model, task)
    rows = explanation.rows()
    edges = {
        (
            f"{r['source']}.{r['source_channel']}",
            f"{r['target']}.{r['target_channel']}",
            r["weight"],
        )
        for r in rows
        if r["kind"] == "edge"
    }
    assert edges == {(str(e.source), str(e.target), e.weight) for e in circuit.edges}
    assert sum(r["kind"] == "residual" for r in rows) == 1
    assert [r["source"] for r in rows if r["kind"] == "embedding"] == ['"\'"', "'\"'", "'\\u202e'"]
    assert [r["weight"] for r in rows if r["kind"] == "unembedding"] == [0.875, -1.125]
    assert json.loads(json.dumps(explanation.to_dict()))["n_edges"] == 5
    assert json.loads(json.dumps(rows)) == rows


def test_without_task_and_tokenizer_tokens_are_numbers_and_the_logits_name_the_most_raised(quotes):
    model, _, circuit = quotes
    model.tokenizer = None
    explanation = explain(circuit, model)
    text = str(explanation)
    assert explanation.answers == ()
    assert "token 4 +1.5" in text
    assert "channel 1 (0.mlp_out.1): token 0 +0.875, token 1 -1.12" in text


def test_a_norm_with_a_gain_is_named_and_counted_into_the_logits():
    model = pencil_model(normalization_type="RMS")
    with torch.no_grad():
        model.get_parameter("blocks.0.ln2.w")[4] = 0.5
        model.get_parameter("ln_final.w")[1] = 2.0
        model.unembed.W_U[1, 3] = 0.25
    names = ["0.mlp_in.4", "0.mlp_neuron.3", "0.mlp_out.1"]
    edges = [(names[0], names[1], 1.0), (names[1], names[2], 1.0)]
    found = {n.node: n for n in explain(circuit_of(model, names, edges), model).nodes}
    assert found["0.mlp_in.4"].gain == 0.5
    assert found["0.mlp_out.1"].raises == (("token 3", 0.5),)


def test_a_head_without_q_and_k_looks_at_all_positions_alike_but_for_its_sink():
    model = pencil_model(use_attention_sinks=True)
    with torch.no_grad():
        model.blocks[0].attn.sinks[0] = 1.25
    edges = [("0.attn_in.1", "0.v.0", 1.0), ("0.v.0", "0.attn_out.2", 1.0)]
    circuit = circuit_of(model, ["0.attn_in.1", "0.v.0", "0.attn_out.2"], edges)
    assert (
        "looks at all positions alike (no q or k is in the circuit), against a sink of +1.25"
        in str(explain(circuit, model))
    )


def test_masked_final_reads_take_the_logits_over_from_the_writes():
    model = pencil_model()
    names = ["0.mlp_in.0", "0.mlp_neuron.0", "0.mlp_out.1", "1.final_in.1"]
    edges = [(names[0], names[1], 1.0), (names[1], names[2], 1.0)]
    circuit = circuit_of(model, names, edges)
    assert readout_nodes(circuit) == (node("1.final_in.1"),)
    assert residual_links(circuit) == [(node("0.mlp_out.1"), node("1.final_in.1"))]
    assert "final read" in str(explain(circuit, model))


def test_a_read_is_linked_to_earlier_writes_only():
    model = pencil_model(n_layers=2)
    names = [
        "0.mlp_in.1",
        "0.attn_out.1",
        "0.mlp_out.1",
        "0.attn_in.1",
        "1.attn_out.1",
        "1.attn_in.2",
    ]
    links = {(str(a), str(b)) for a, b in residual_links(circuit_of(model, names, []))}
    assert links == {("0.attn_out.1", "0.mlp_in.1")}


def test_a_large_circuit_is_quick_and_its_text_is_cut_with_a_word_about_it():
    torch.manual_seed(0)
    model = HookedSparseTransformer(
        dict(
            n_layers=1,
            d_model=40,
            d_head=4,
            n_heads=2,
            d_mlp=40,
            n_ctx=8,
            d_vocab=50,
            act_fn="gelu",
            normalization_type="RMSPre",
            device="cpu",
        )
    )
    w_in, w_out = model.blocks[0].mlp.W_in, model.blocks[0].mlp.W_out
    names = [f"0.{site}.{c}" for site in ("mlp_in", "mlp_neuron", "mlp_out") for c in range(40)]
    edges = [
        (f"0.mlp_in.{a}", f"0.mlp_neuron.{b}", w_in[a, b].item())
        for a in range(40)
        for b in range(40)
    ]
    edges += [
        (f"0.mlp_neuron.{a}", f"0.mlp_out.{b}", w_out[a, b].item())
        for a in range(40)
        for b in range(40)
    ]
    circuit = circuit_of(model, names, edges)
    began = time.process_time()
    explanation = explain(circuit, model)
    text = str(explanation)
    assert time.process_time() - began < 5
    assert "The 200 largest of its edges are written out; 3,000 are left out" in text
    assert len(re.findall(r" x (?:read|neuron) ", text)) == 200
    assert sum(row["kind"] == "edge" for row in explanation.rows()) == 3200
    assert "left out" not in explanation.render(max_edges=None)


def test_a_circuit_of_another_model_is_refused(quotes):
    model, task, circuit = quotes
    with torch.no_grad():
        model.embed.W_E[0, 0] = 1.0
    with pytest.raises(ValueError, match="found in another model"):
        explain(circuit, model, task)


def test_a_circuit_explains_itself(quotes):
    model, task, circuit = quotes
    assert circuit.explain(model, task) == explain(circuit, model, task)
    assert circuit.explain(model, n_tokens=1) == explain(circuit, model, n_tokens=1)
    assert circuit.explain(model) != circuit.explain(model, n_tokens=1)


def test_nodes_that_no_edge_leads_into_are_held_and_the_text_says_so(quotes):
    model, task, circuit = quotes
    kept = [e for e in circuit.edges if str(e.target) != "0.mlp_neuron.3"]
    cut = replace(circuit, edges=tuple(kept))
    found = explain(cut, model, task)
    assert (found.n_nodes, found.n_edges) == (cut.n_nodes - 2, 3)
    assert "0.mlp_neuron.3" not in {n.node for n in found.nodes}
    assert "* No edge leads into 0.mlp_neuron.3, 0.mlp_out.1: held too" in str(found)
    assert "No edge leads into" not in str(explain(circuit, model, task))
