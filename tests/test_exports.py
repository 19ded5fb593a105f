"""Graphs of one prompt and of components: sums, interventions, numbers by hand, formats."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from conftest import make_model, write_edges

from tl_sparse.ablation import only_circuit
from tl_sparse.circuit import Circuit, Edge, Node, Site
from tl_sparse.config import SparsityConfig
from tl_sparse.exports import prompt_graph, to_circuit_tracer, to_mib
from tl_sparse.exports.mib import mib_graph
from tl_sparse.interface import interface_weights
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.selection import nonzero_weights
from tl_sparse.sites import joint_matrix, model_hash, site_map
from tl_sparse.tasks import Pair, PairTask, Split

SCHEMA = json.loads((Path(__file__).parent / "golden/circuit_tracer_schema.json").read_text())
PROMPT = [3, 1, 4, 1]
SPARSE = SparsityConfig(
    weight_density=0.3, embedding_density=0.5, activation_density=0.5, bigram_table=True
)


class Letters:
    """A tokenizer whose tokens are single characters from '!' on."""

    padding_side, bos_token_id, pad_token_id, eos_token_id = "right", None, None, None

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) - 33 for letter in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def circuit_of(model, edges, nodes=(), reference=0.0) -> Circuit:
    """A circuit by the names of its nodes; its edges are written into the model."""
    write_edges(model, edges)
    found = tuple(Edge(Node.parse(a), Node.parse(b), w) for a, b, w in edges)
    ends = {node for edge in found for node in (edge.source, edge.target)}
    return Circuit(
        nodes=tuple(ends | {Node.parse(name) for name in nodes}),
        edges=found,
        references={i.site: (reference,) * i.width for i in site_map(model, final=True).sites},
        task="toy",
        model_hash=model_hash(model),
    )


def random_circuit(model, share=0.5, final=False) -> Circuit:
    """Half of the edges, and the nodes at their ends, with references drawn at random."""
    rng = random.Random(0)
    sites = site_map(model, final=True)
    edges = [
        Edge(Node(joint.source, a), Node(joint.target, b), joint_matrix(model, joint)[a, b].item())
        for joint, live in nonzero_weights(model, sites).items()
        for a, b in live.nonzero().tolist()
        if rng.random() < share
    ]
    nodes = {node for edge in edges for node in (edge.source, edge.target)}
    if final:
        nodes |= {Node(Site(2, "final_in"), c) for c in range(0, 32, 2)}
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges),
        references={i.site: tuple(rng.gauss(0, 1) for _ in range(i.width)) for i in sites.sites},
        task="random",
        model_hash=model_hash(model),
    )


def alone(model, circuit, prompt=PROMPT):
    """Logits at the last position and every activation, with the circuit alone."""
    with torch.no_grad(), only_circuit(model, circuit):
        logits, cache = model.run_with_cache(torch.tensor([prompt]))
    return logits[0, -1], {name: x[0] for name, x in cache.items()}


def held(model, cache, node: Node, pos: int) -> float:
    info = site_map(model, final=True)[node.site]
    return cache[info.hook_name][pos].flatten()[node.channel].item()


MODELS = {
    "sparse": (SPARSE, {}),
    "dense": (SparsityConfig(), {}),
    "norms with gains and biases": (SPARSE, {"normalization_type": "LN"}),
    "gains": (SPARSE, {"normalization_type": "RMS", "positional_embedding_type": "none"}),
    "no sinks, rotary": (
        SPARSE,
        {"positional_embedding_type": "rotary", "rotary_dim": 8, "use_attention_sinks": False},
    ),
    "position channels": (
        SparsityConfig(weight_density=0.3, activation_density=0.5, position_channels=5),
        {"positional_embedding_type": "none"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_links_into_each_node_and_its_constant_add_up_in_the_file(name, tmp_path):
    (sparsity, shape), final = MODELS[name], "gains" in name
    model = make_model(sparsity, dtype=torch.float64, **shape)
    circuit = random_circuit(model, share=0.03 if sparsity.is_dense else 0.1, final=final)
    to_circuit_tracer(circuit, model, PROMPT, tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    sums = dict.fromkeys((node["node_id"] for node in data["nodes"]), 0.0)
    for link in data["links"]:
        sums[link["target"]] += link["weight"]
    logits, cache = alone(model, circuit)
    n_checked = 0
    for node in data["nodes"]:
        if node["feature_type"] == "embedding":
            assert sums[node["node_id"]] == 0
            continue
        total = sums[node["node_id"]] + node["constant"]
        assert total == pytest.approx(node["input"], abs=1e-9)
        if node["feature_type"] == "logit":
            assert node["activation"] == pytest.approx(logits[node["feature"]].item(), abs=1e-9)
            continue
        place = Node.parse(node["name"])
        found = held(model, cache, place, node["ctx_idx"])
        assert node["activation"] == pytest.approx(found, abs=1e-9)
        expected = total
        if place.site.name == "mlp_neuron":
            expected = torch.nn.functional.gelu(torch.tensor(total, dtype=torch.float64)).item()
        assert node["activation"] == pytest.approx(expected, abs=1e-9)
        n_checked += 1
    assert n_checked > 50


def test_a_link_is_what_its_target_moves_by_when_its_source_alone_is_raised():
    """A causal oracle: all sites but the target's frozen, the source a tenth larger."""
    model = make_model(SparsityConfig(bigram_table=True), dtype=torch.float64)
    circuit = random_circuit(model, share=0.03)
    graph = prompt_graph(circuit, model, PROMPT)
    logits, cache = alone(model, circuit)
    sites = site_map(model)
    tokens = torch.tensor([PROMPT])
    rng = random.Random(1)
    kinds: dict[str, list] = {}
    for link in graph.links:
        ends = [p.what.site.name if isinstance(p.what, Node) else p.what for p in link[:2]]
        kinds.setdefault(" -> ".join(map(str, ends)), []).append(link)
    assert len(kinds) == 15  # token, attn_out, mlp_out into reads and logits, and the six weights
    for link in [rng.choice(some) for some in kinds.values()]:
        source, target = link.source, link.target
        hooks = []
        for info in sites.sites:
            if isinstance(target.what, Node) and info.site == target.what.site:
                continue
            frozen = cache[info.hook_name].clone()
            if isinstance(source.what, Node) and info.site == source.what.site:
                frozen[source.pos].view(-1)[source.what.channel] *= 1.1
            hooks.append((info.hook_name, lambda x, hook, frozen=frozen: frozen[None]))
        for name in model.hook_dict:
            if name.endswith(("hook_scale", "hook_pattern")):
                hooks.append((name, lambda x, hook, frozen=cache[name]: frozen[None]))
        if source.what == "token":
            factor = torch.ones(len(PROMPT), 1).double()
            factor[source.pos] = 1.1
            hooks += [(name, lambda x, hook, factor=factor: x * factor)
                      for name in ("hook_embed", "bigram.hook_out")]  # fmt: skip
        if isinstance(target.what, Node) and target.what.site.name == "mlp_neuron":
            hooks.append((f"blocks.{target.what.site.layer}.mlp.hook_post", None))
        seen: dict[str, torch.Tensor] = {}

        def look(x, hook, seen=seen):
            seen["found"] = x[0]

        if target.what == "logit":
            before = logits[target.token].item()
        else:
            assert isinstance(target.what, Node)
            site = sites[target.what.site]
            name = site.hook_name
            if target.what.site.name == "mlp_neuron":
                name = f"blocks.{target.what.site.layer}.mlp.hook_pre"
            hooks = [hook for hook in hooks if hook[1] is not None] + [(name, look)]
            before = cache[name][target.pos].flatten()[target.what.channel].item()
        with torch.no_grad(), only_circuit(model, circuit):
            out = model.run_with_hooks(tokens, fwd_hooks=hooks)
        if target.what == "logit":
            after = out[0, -1, target.token].item()
        else:
            after = seen["found"][target.pos].flatten()[target.what.channel].item()
        assert (after - before) / 0.1 == pytest.approx(link.weight, rel=1e-6, abs=1e-9), link


def test_the_terms_of_a_score_add_up_with_what_is_held():
    model = make_model(SPARSE, dtype=torch.float64)
    circuit = random_circuit(model, share=0.3)
    graph = prompt_graph(circuit, model, PROMPT)
    _, cache = alone(model, circuit)
    terms: dict[tuple[int, int, int, int], float] = {}
    for s in graph.scores:
        key = s.layer, s.head, s.query_pos, s.key_pos
        terms[key] = terms.get(key, 0.0) + s.weight
    kept = set(circuit.nodes)
    fed = {edge.target for edge in circuit.edges}
    looked = {k[:3] for k in terms}
    assert len(looked) > 15
    for (layer, head, query, key), total in terms.items():
        for c in range(head * 8, head * 8 + 8):
            pair = [Node(Site(layer, name), c) for name in "qk"]
            if not any(node in kept and node in fed for node in pair):
                a, b = (circuit.references[node.site][c] for node in pair)
                total += a * b / math.sqrt(8)
        found = cache[f"blocks.{layer}.attn.hook_attn_scores"][head, query, key].item()
        assert total == pytest.approx(found, abs=1e-9)


def pencil() -> tuple[HookedSparseTransformer, Circuit]:
    """One head copies channel 0 into channel 1, one neuron squares up, all else is zero."""
    model = HookedSparseTransformer(
        dict(n_layers=1, d_model=4, d_head=2, n_heads=2, d_mlp=3, n_ctx=8, d_vocab=60, eps=1e-300,
             act_fn="relu", normalization_type="RMSPre", positional_embedding_type="none",
             use_attn_scale=False, device="cpu", dtype=torch.float64),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # tokens 1 and 2 have norm 2 x sqrt(4) / sqrt(4): a scale of 1 and 2 at the first read
        model.embed.W_E[1, 0], model.embed.W_E[2, 0] = 2.0, -4.0
        model.get_parameter("blocks.0.attn.b_V")[1, 0] = 0.25
        model.get_parameter("blocks.0.mlp.b_in")[2] = 0.5
        model.unembed.W_U[3, 7], model.unembed.W_U[1, 8] = 3.0, -1.0
        model.unembed.b_U[7] = 0.125
    edges = [
        ("0.attn_in.0", "0.v.2", 1.5),
        ("0.v.2", "0.attn_out.1", 2.0),
        ("0.mlp_in.1", "0.mlp_neuron.2", 5.0),
        ("0.mlp_neuron.2", "0.mlp_out.3", 1.0),
    ]
    return model, circuit_of(model, edges)


def brackets() -> PairTask:
    """A task whose answers are the tokens 7 and 8."""
    splits: dict[Split, list[Pair]] = {
        split: [Pair((n * "#" + '"', n * '"' + '"'), ("(", ")"))]
        for n, split in enumerate(("train", "validation", "test"), start=1)
    }
    return PairTask("toy", splits, tokenizer=Letters())


def test_every_number_of_a_pencil_and_paper_prompt():
    model, circuit = pencil()
    graph = prompt_graph(circuit, model, [1, 2], task=brackets())
    at = {f"{p.what} at {p.pos}" if p.what != "logit" else f"logit {p.token}": v
          for p, v in graph.values.items()}  # fmt: skip
    # Reads: x / rms. Token 1: (2, 0, 0, 0) has rms 1; token 2: (-4, 0, 0, 0) has rms 2.
    assert at["0.attn_in.0 at 0"].activation == 2.0
    assert at["0.attn_in.0 at 1"].activation == -2.0
    # v = 1.5 x read + 0.25
    assert at["0.v.2 at 0"] == (3.25, 3.25, 0.25)
    assert at["0.v.2 at 1"] == (-2.75, -2.75, 0.25)
    # All scores are 0: position 0 looks at itself, position 1 at both alike.
    assert at["0.attn_out.1 at 1"].activation == 2.0 * (3.25 - 2.75) / 2
    weights = {(str(w.source.what), w.source.pos, str(w.target.what), w.target.pos): w.weight
               for w in graph.links}  # fmt: skip
    assert weights["token", 0, "0.attn_in.0", 0] == 2.0
    assert weights["0.attn_in.0", 1, "0.v.2", 1] == -3.0
    assert weights["0.v.2", 0, "0.attn_out.1", 1] == 3.25
    assert weights["0.v.2", 1, "0.attn_out.1", 1] == -2.75
    # Residual stream at position 1: (-4, 0.5, 0, 0), rms sqrt(16.25 / 4)
    read = 0.5 / math.sqrt(16.25 / 4)
    assert weights["0.attn_out.1", 1, "0.mlp_in.1", 1] == pytest.approx(read)
    pre = 5 * read + 0.5
    assert at["0.mlp_neuron.2 at 1"] == pytest.approx((pre, pre, 0.5))
    scale = math.sqrt((16.25 + pre**2) / 4)
    assert at["logit 7"] == pytest.approx((3 * pre / scale + 0.125, 3 * pre / scale + 0.125, 0.125))
    assert at["logit 8"].activation == pytest.approx(-0.5 / scale)
    # Nothing at position 0 but what position 1 looks at.
    assert {str(p.what) for p in graph.values if p.pos == 0} == {"token", "0.attn_in.0", "0.v.2"}
    (first, *_) = graph.logits
    assert first.token == 7
    z = [3 * pre / scale + 0.125, -0.5 / scale, *[0.0] * 58]
    expected = math.exp(z[0]) / sum(map(math.exp, z))
    assert graph.probabilities[7] == pytest.approx(expected)


def test_the_file_is_what_circuit_tracer_and_neuronpedia_take(tmp_path):
    model, circuit = pencil()
    model.tokenizer = Letters()  # pyright: ignore[reportAttributeAccessIssue]  # a stand-in
    to_circuit_tracer(circuit, model, '"#', tmp_path / "first.json", task=brackets())
    data = json.loads((tmp_path / "first.json").read_text())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA)
    fields = SCHEMA["$defs"]["Node"]["properties"].keys()
    assert all(fields <= node.keys() for node in data["nodes"])
    # What Neuronpedia's schema asks for, read from it: circuit-tracer leaves `clerp` out.
    assert data["metadata"].keys() >= {"slug", "scan", "prompt_tokens", "prompt"}
    assert data["metadata"]["slug"] == "first"
    assert data["metadata"]["prompt_tokens"] == ['"', "#"]
    assert data["metadata"]["prompt"] == '"#'
    nodes = {node["node_id"]: node for node in data["nodes"]}
    assert len(nodes) == len(data["nodes"])
    assert all(end in nodes for link in data["links"] for end in (link["source"], link["target"]))
    # Links go up the rows, from embeddings to logits.
    rows = {i: -1 if n["layer"] == "E" else int(n["layer"]) for i, n in nodes.items()}
    assert all(rows[link["source"]] < rows[link["target"]] for link in data["links"])
    assert nodes["E_2_1"]["feature_type"] == "embedding"
    assert nodes["6_2_1"]["clerp"] == "0.mlp_neuron.2"
    assert nodes["6_2_1"]["feature"] == 8 * 9 // 2 + 2  # Cantor's pair of 6 and 2
    assert nodes["3_2_0"]["clerp"] == "0.v.2 (head 1, channel 0)"
    logits = [node for node in data["nodes"] if node["feature_type"] == "logit"]
    assert {(n["node_id"], n["ctx_idx"], n["is_target_logit"]) for n in logits} == {
        ("8_7_1", 1, True),
        ("8_8_1", 1, False),
    }
    assert logits[0]["clerp"] == f'Output "(" (p={logits[0]["token_prob"]:.3f})'
    broken = json.loads(json.dumps(data))
    del broken["nodes"][0]["ctx_idx"]
    with pytest.raises(jsonschema.ValidationError, match="ctx_idx"):
        jsonschema.validate(broken, SCHEMA)

    to_circuit_tracer(circuit, model, '"#', tmp_path / "second.json")
    to_circuit_tracer(circuit, model, "##", tmp_path / "first.json")
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [(g["slug"], g["prompt"]) for g in listed] == [("second", '"#'), ("first", "##")]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "first.json", "graph-metadata.json", "second.json"]  # fmt: skip


def test_the_largest_terms_of_the_scores_stand_at_the_writes(tmp_path):
    model = make_model(SPARSE, dtype=torch.float64)
    circuit = random_circuit(model, share=0.3)
    graph = to_circuit_tracer(circuit, model, PROMPT, tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    nodes = {node["node_id"]: node for node in data["nodes"]}
    by_names = {(str(s.q and s.q.what), s.query_pos, str(s.k and s.k.what), s.key_pos): s.weight
                for s in graph.scores}  # fmt: skip
    n_pairs = 0
    for node in data["nodes"]:
        tracing = node.get("qk_tracing_results")
        assert (tracing is None) == (node["name"].split(".")[1:2] != ["attn_out"])
        for q, k, weight in (tracing or {}).get("pair_wise_contributors", []):
            ends = nodes[q], nodes[k]
            assert ends[0]["ctx_idx"] == node["ctx_idx"]
            key = [x for end in ends for x in (end["name"], end["ctx_idx"])]
            assert by_names[tuple(key)] == weight
            product = ends[0]["activation"] * ends[1]["activation"] / math.sqrt(8)
            assert weight == pytest.approx(product)
            n_pairs += 1
    assert n_pairs > 20


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "A prompt has 1 to 8 tokens, got 0"),
        ([1] * 9, "A prompt has 1 to 8 tokens, got 9"),
        ([1, 60], "no token 60; it has 60"),
        ("text", "no tokenizer; give the prompt as tokens"),
    ],
)
def test_prompts_that_the_model_can_not_read_are_refused(prompt, message, tmp_path):
    model, circuit = pencil()
    with pytest.raises(ValueError, match=message):
        to_circuit_tracer(circuit, model, prompt, tmp_path / "g.json")
    assert not list(tmp_path.iterdir())


def test_places_that_a_graph_can_not_be_written_to_are_refused(tmp_path):
    model, circuit = pencil()
    with pytest.raises(ValueError, match=r"files NAME\.json, got 'graph'"):
        to_circuit_tracer(circuit, model, [1], tmp_path / "graph")
    (tmp_path / "graph-metadata.json").write_text('{"graphs": 3}')
    with pytest.raises(ValueError, match="is no list of graphs"):
        to_circuit_tracer(circuit, model, [1], tmp_path / "g.json")
    assert not (tmp_path / "g.json").exists()


def test_a_model_with_a_part_that_the_sums_do_not_know_is_refused():
    model = make_model(SPARSE, output_logits_soft_cap=2.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="the model has a part that prompt_graph does not know"):
        prompt_graph(random_circuit(model), model, PROMPT)


def test_a_node_that_its_edges_leave_without_in_edge_is_no_place_and_writes_nothing():
    model, circuit = pencil()
    cut = replace(circuit, edges=circuit.edges[1:])  # nothing leads into the head's v
    assert str(circuit.edges[0].target) == "0.v.2"
    places = {str(place.what) for place in prompt_graph(cut, model, [1, 2]).values}
    assert places.isdisjoint({"0.v.2", "0.attn_out.1"})
    assert mib_graph(circuit, model)["nodes"]["a0.h1"]["in_graph"]
    assert not mib_graph(cut, model)["nodes"]["a0.h1"]["in_graph"]


# -- heads and MLPs -------------------------------------------------------------------------------


def test_a_graph_of_components_by_hand(tmp_path):
    two = make_model(n_layers=2, d_model=8, d_head=4, n_heads=2, d_mlp=4, d_vocab=10, random=False)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.zero_()
        two.embed.W_E[3, 0] = two.embed.W_E[4, 1] = 1.0
        two.unembed.W_U[5, 2] = two.unembed.W_U[6, 2] = 1.0
    circuit = circuit_of(
        two,
        [
            ("0.attn_in.0", "0.v.1", 1.0),  # head 0 of layer 0: input -> channel 2
            ("0.attn_in.1", "0.k.0", 1.0),
            ("0.v.1", "0.attn_out.2", 1.0),
            ("0.attn_in.0", "0.q.5", 1.0),  # head 1 of layer 0 writes nothing
            ("1.attn_in.2", "1.v.6", 1.0),  # head 1 of layer 1: channel 2 -> channel 5
            ("1.v.6", "1.attn_out.5", 1.0),
            ("1.mlp_in.5", "1.mlp_neuron.0", 1.0),  # MLP 1: channels 5 and 0 -> channel 6
            ("1.mlp_in.0", "1.mlp_neuron.0", 1.0),
            ("1.mlp_in.7", "1.mlp_neuron.0", 1.0),  # which nobody writes
            ("1.mlp_neuron.0", "1.mlp_out.6", 1.0),
        ],
    )
    to_mib(circuit, two, tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert {name for name, node in data["nodes"].items() if node["in_graph"]} == {
        "input", "a0.h0", "a1.h1", "m1", "logits"}  # fmt: skip
    found = {name: edge["score"] for name, edge in data["edges"].items() if edge["in_graph"]}
    assert found == {
        "input->a0.h0<v>": 1,
        "input->a0.h0<k>": 1,
        "a0.h0->a1.h1<v>": 1,
        "a1.h1->m1": 1,
        "input->m1": 1,
        "a1.h1->logits": 1,
        "m1->logits": 1,
    }
    assert all(edge["score"] == 0 for edge in data["edges"].values() if not edge["in_graph"])


def mib(model, edges, **more):
    return mib_graph(circuit_of(model, edges, **more), model)


def test_components_need_no_references_and_a_prompts_constants_do():
    model, circuit = pencil()
    other = replace(circuit, ablation="resample_pair", references={})
    assert mib_graph(other, model) == mib_graph(circuit, model)
    assert interface_weights(other, model) == interface_weights(circuit, model)
    with pytest.raises(ValueError, match="this needs constants"):
        prompt_graph(other, model, [1, 2])


def test_a_masked_final_read_is_what_the_logits_read():
    model, circuit = pencil()
    edges = [(str(a), str(b), w) for a, b, w in circuit.edges]
    assert mib(model, edges)["edges"]["m0->logits"]["in_graph"]
    assert not mib(model, edges, nodes=["1.final_in.1"])["edges"]["m0->logits"]["in_graph"]
    assert mib(model, edges, nodes=["1.final_in.3"])["edges"]["m0->logits"]["in_graph"]


def test_the_graph_of_gpt2_smalls_shape_has_the_published_number_of_nodes_and_edges():
    """EAP-IG's graph of GPT-2 small: 158 nodes, 32,491 edges."""
    model = make_model(n_layers=12, n_heads=12, d_head=2, d_model=24, d_mlp=4, random=False)
    data = mib(model, [])
    assert (len(data["nodes"]), len(data["edges"])) == (158, 32_491)
    assert not any(edge["in_graph"] for name, edge in data["edges"].items()
                   if name != "input->logits")  # fmt: skip
