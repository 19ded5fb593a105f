"""A compiled circuit against the model with only the circuit left in, and against plain torch."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import SHAPE, make_model
from plain import plain_circuit
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

from tl_sparse import Circuit, SparsityConfig
from tl_sparse.ablation import only_circuit
from tl_sparse.circuit import Edge, Node, Site
from tl_sparse.compiling import CompiledCircuit
from tl_sparse.compiling.parts import Rivals
from tl_sparse.functional import abs_topk
from tl_sparse.sites import joint_matrix, model_hash, site_map

ANSWERS = {"a": 3, "b": 41, "c": 7}
SPARSE = SparsityConfig(weight_density=0.1, activation_density=0.4, bigram_table=True)
NO_RIVALS = SparsityConfig(weight_density=0.1)
DOUBLE = {"dtype": torch.float64, "positional_embedding_type": "none"}


def random_circuit(model: Any, seed: int, *, share: float = 0.4, final: bool = False) -> Circuit:
    """Some nodes of every site and some of the weights between them, with random references."""
    generator = torch.Generator().manual_seed(seed)
    sites = site_map(model, final=final)
    kept = {i.site: torch.rand(i.width, generator=generator) < share for i in sites.sites}
    references = {
        i.site: tuple(torch.randn(i.width, generator=generator, dtype=torch.float64).tolist())
        for i in sites.sites
    }
    edges = []
    for joint in sorted(sites.joints, key=lambda j: j.target.order):
        matrix = joint_matrix(model, joint)
        keep = torch.rand(matrix.shape, generator=generator) < 0.8
        keep &= (matrix != 0) & kept[joint.source][:, None]
        kept[joint.target] &= keep.any(0)  # a node without in-edges is dropped
        for s, t in (keep & kept[joint.target]).nonzero().tolist():
            edges.append(Edge(Node(joint.source, s), Node(joint.target, t), float(matrix[s, t])))
    nodes = [Node(site, c) for site, on in kept.items() for c in on.nonzero().flatten().tolist()]
    return Circuit(
        nodes=tuple(nodes), edges=tuple(edges), references=references,
        task="random", model_hash=model_hash(model), provenance={"answers": ANSWERS},
    )  # fmt: skip


def in_the_model(model: Any, circuit: Circuit, tokens: torch.Tensor, last: torch.Tensor) -> Any:
    with only_circuit(model, circuit), torch.no_grad():
        logits = model(tokens)
    return logits[torch.arange(len(last)), last][:, list(ANSWERS.values())]


LAST = torch.tensor([11, 4, 8])
KINDS: dict[str, tuple[SparsityConfig | None, dict[str, Any]]] = {
    "the demo's kind": (SPARSE, {}),
    "without sinks": (SPARSE, {"use_attention_sinks": False}),
    "learned positions": (SPARSE, {"positional_embedding_type": "standard"}),
    "norms with gains": (SPARSE, {"normalization_type": "RMS"}),
    "no norm": (SPARSE, {"normalization_type": None}),
    "bidirectional": (SPARSE, {"attention_dir": "bidirectional"}),
    "attention only": (SPARSE, {"attn_only": True}),
    "three layers": (SPARSE, {"n_layers": 3}),
    "ReLU": (SPARSE, {"act_fn": "relu"}),
    "layer norm": (NO_RIVALS, {"normalization_type": "LN"}),
    "layer norm, folded": (NO_RIVALS, {"normalization_type": "LNPre"}),
    "rivals at some sites": (
        SparsityConfig(weight_density=0.1, activation_density={"q": 0.3, "mlp_out": 0.2}),
        {"use_attention_sinks": False},
    ),
    "one channel stays": (SparsityConfig(weight_density=0.1, activation_density=0.04), {}),
    "dense, without AbsTopK": (None, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("final", [False, True])
def test_compiled_equals_the_model_with_only_the_circuit_left_in(kind, final, tokens):
    sparsity, shape = KINDS[kind]
    model = make_model(sparsity, **(DOUBLE | shape))
    for seed in range(4):
        share = (0.05, 0.2, 0.4, 0.9)[seed]
        circuit = random_circuit(model, seed, share=share, final=final)
        compiled = circuit.compile(model, max_rivals=1.0)
        expected = in_the_model(model, circuit, tokens, LAST)
        torch.testing.assert_close(compiled(tokens, LAST), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "kind", ["the demo's kind", "learned positions", "bidirectional", "three layers"]
)
def test_at_every_position_a_call_gives_what_the_parts_give_one_after_another(kind, tokens):
    """A call looks up what comes before attention and leaves out what no answer hangs on."""
    sparsity, shape = KINDS[kind]
    model = make_model(sparsity, **(DOUBLE | shape))
    n = tokens.shape[1]
    position = torch.arange(n)
    for attends in ((), (0,), (1,), (0, 1)):  # the layers in which the circuit attends
        circuit = random_circuit(model, 4, share=0.9)
        nodes = tuple(
            node
            for node in circuit.nodes
            if node.site.name != "attn_out" or node.site.layer in attends
        )
        edges = tuple(edge for edge in circuit.edges if edge.target in nodes)
        compiled = replace(circuit, nodes=nodes, edges=edges).compile(model, max_rivals=1.0)
        assert tuple(i // 2 for i in compiled.attentions()) == attends
        stream = compiled.everywhere(tokens)
        row = tokens * model.cfg.n_ctx + position if compiled.positions else tokens
        for i in range(n):
            found = compiled(tokens, torch.full((len(tokens),), i))
            expected = compiled.readout(stream[:, i], row[:, i], tokens[:, i])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_among_equals_the_first_is_the_larger_as_in_abs_topk():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-3, 4, (40, 5, 6), generator=generator).double()
    constant = torch.rand(8, generator=generator, dtype=torch.float64) * 3  # equal to no integer
    largest, infinite = constant.sort(descending=True).values, torch.tensor(float("inf"))
    row = torch.zeros(40, 5, dtype=torch.long)
    for k in (1, 3, 7, 12):
        places = [k - 1 - j for j in range(6)]
        thresholds = [
            infinite if p < 0 else (largest[p] if p < 8 else -torch.ones(())) for p in places
        ]
        rivals = Rivals(n_kept=k, width=14, thresholds=torch.stack(thresholds)[None])
        everything = torch.cat([values, constant.expand(40, 5, 8)], -1)
        expected = abs_topk(everything, k)[..., [1, 4]]
        assert torch.equal(rivals(values, [1, 4], row), expected)


@pytest.mark.parametrize("seed", range(6))
def test_compiled_equals_plain_torch(seed, tokens):
    """The oracle has no code of ours: every node and every cut weight is set by hand."""
    model = make_model(SPARSE, **DOUBLE)
    circuit = random_circuit(model, seed)
    logits = plain_circuit(model, tokens, circuit, set(circuit.nodes), SHAPE)
    compiled = circuit.compile(model, max_rivals=1.0)
    expected = logits[:, -1, list(ANSWERS.values())]
    torch.testing.assert_close(compiled(tokens), expected, rtol=0, atol=1e-11)


def test_in_single_precision_only_near_ties_of_abs_topk_can_differ():
    model = make_model(SPARSE, positional_embedding_type="none")
    circuit = random_circuit(model, 3)
    compiled = circuit.compile(model, max_rivals=1.0)
    tokens = torch.randint(0, 50, (400, 12), generator=torch.Generator().manual_seed(5))
    last = torch.full((400,), 11)
    gap = (compiled(tokens) - in_the_model(model, circuit, tokens, last)).abs().amax(-1)
    clear = compiled.margin(tokens) > 1e-5
    assert clear.sum() > 100
    assert gap[clear].max() < 1e-4


def test_the_margin_is_the_distance_to_the_nearest_other_choice(tokens):
    """Moving one channel of the embedding by less than the margin, nothing is chosen anew."""
    model = make_model(
        SparsityConfig(weight_density=0.2, activation_density={"attn_in": 0.25}),
        **(DOUBLE | {"n_layers": 1, "attn_only": True, "normalization_type": None}),
    )
    circuit = random_circuit(model, 1)
    compiled = circuit.compile(model)
    one = tokens[:1, :1]
    row = model.embed.W_E.detach()[one[0, 0]]
    reads = [n.channel for n in circuit.nodes if n.site.name in ("attn_in", "attn_out")]
    size = row.abs()
    ranked = size.sort(descending=True).values
    k = 8  # a quarter of 32
    # a channel that is in leaves below the (k + 1)-th, one that is out comes in above the k-th
    wanted = min(
        float(size[c] - ranked[k]) if size[c] >= ranked[k - 1] else float(ranked[k - 1] - size[c])
        for c in set(reads)
    )
    assert compiled.margin(one).item() == pytest.approx(wanted, abs=1e-12)


def competitions(model: Any, compiled: Any) -> Iterator[tuple[Any, list[int]]]:
    """Each AbsTopK of the model, and the channels there that the compiled circuit computes."""
    for i, sublayer in enumerate(compiled.sublayers()):
        block, half = model.blocks[i // 2], ("attn", "mlp")[i % 2]
        yield getattr(block, f"topk_{half}_in"), compiled.stream
        if half == "mlp":
            yield block.mlp.topk, sublayer.neurons.channels
        for letter in "qkv" if half == "attn" else "":
            yield getattr(block.attn, f"topk_{letter}"), getattr(sublayer, letter).channels
        yield getattr(block, f"topk_{half}_out"), sublayer.write.channels


@pytest.mark.parametrize("kind", ["the demo's kind", "no norm", "learned positions"])
def test_margins_are_those_of_the_channels_that_the_model_chooses_from(kind, tokens):
    """Read off in the model: how far each that is in is above the best one out, and the reverse."""
    sparsity, shape = KINDS[kind]
    model = make_model(sparsity, **(DOUBLE | shape))
    circuit = random_circuit(model, 3)
    compiled = circuit.compile(model, max_rivals=1.0)
    margins = []

    def watch(channels: list[int], module: Any, args: Any, output: Any) -> None:
        size = args[0].flatten(2).abs()
        ranked = size.sort(descending=True).values
        worst_in, best_out = ranked[..., module.n_kept - 1, None], ranked[..., module.n_kept, None]
        size = size[..., channels]
        distance = torch.where(size >= worst_in, size - best_out, worst_in - size)
        margins.append(distance.flatten(1).amin(1))

    for module, channels in competitions(model, compiled):
        module.register_forward_hook(partial(watch, channels))
    with only_circuit(model, circuit), torch.no_grad():
        model(tokens)
    assert len(margins) == 16  # five in attention and three in the MLP of each layer
    torch.testing.assert_close(compiled.margin(tokens), torch.stack(margins).amin(0))


def test_without_abs_topk_no_choice_is_near(tokens):
    model = make_model(NO_RIVALS, **DOUBLE)
    assert random_circuit(model, 3).compile(model).margin(tokens).isinf().all()


def test_a_model_in_double_precision_is_the_same_model(tokens):
    model = make_model(SPARSE, positional_embedding_type="none")
    circuit = random_circuit(model, 2)
    model.to(torch.float64)
    model.cfg.dtype = torch.float64
    compiled = circuit.compile(model, max_rivals=1.0)
    expected = in_the_model(model, circuit, tokens, LAST)
    torch.testing.assert_close(compiled(tokens, LAST), expected, rtol=0, atol=1e-11)


def test_only_what_the_circuit_needs_is_in_it():
    model = make_model(SPARSE, **DOUBLE)
    circuit = random_circuit(model, 0, share=0.2)
    compiled = circuit.compile(model, max_rivals=1.0)
    counts = compiled.n_parameters
    assert counts["weights"] < sum(int((p != 0).sum()) for p in model.parameters()) / 10
    assert sum(counts.values()) <= sum(p.numel() for p in compiled.parameters())
    assert not any(p.requires_grad for p in compiled.parameters())
    text = str(compiled)
    written = {node.site for node in circuit.nodes}
    edges = [e for e in circuit.edges if e.target.site.name == "mlp_neuron"]
    edges = [e for e in edges if Site(e.target.site.layer, "mlp_out") in written]
    assert edges
    for edge in edges:
        assert f"neuron[{edge.target.channel}] = " in text
        assert f"{abs(edge.weight):.4g} read[{edge.source.channel}]" in text
    assert repr(compiled).startswith(f"CompiledCircuit(random: {circuit.n_edges} edges; ")


def test_the_equations_give_the_logits_by_hand(tokens):
    """One head, one value channel, everything else constant: each printed number put together."""
    shape = DOUBLE | {"n_layers": 1, "attn_only": True, "normalization_type": None}
    model = make_model(NO_RIVALS, **shape, d_head=32)
    v, out, read = Site(0, "v"), Site(0, "attn_out"), Site(0, "attn_in")
    w_v, w_o = model.W_V[0, 0].detach(), model.W_O[0, 0].detach()
    channel = int((w_v != 0).any(0).logical_and((w_o != 0).any(1)).nonzero()[0])
    c_in, c_out = int(w_v[:, channel].abs().argmax()), int(w_o[channel].abs().argmax())
    nodes = Node(read, c_in), Node(v, channel), Node(out, c_out)
    circuit = Circuit(
        nodes=nodes,
        edges=(
            Edge(nodes[0], nodes[1], float(w_v[c_in, channel])),
            Edge(nodes[1], nodes[2], float(w_o[channel, c_out])),
        ),
        references={info.site: (0.0,) * info.width for info in site_map(model).sites},
        task="by hand",
        model_hash=model_hash(model),
        provenance={"answers": ANSWERS},
    )
    value = float(w_v[c_in, channel]) * model.W_E.detach()[tokens, c_in]
    value = value + model.b_V.detach()[0, 0, channel]
    n = tokens.shape[1]
    share = 1 / (n + model.blocks[0].attn.sinks.exp().item())  # q and k are 0: equal scores
    written = share * value.sum(1) * float(w_o[channel, c_out]) + model.b_O.detach()[0, c_out]
    resid = model.W_E.detach()[tokens[:, -1]]
    resid[:, c_out] += written
    logits = resid @ model.W_U.detach() + model.b_U.detach()
    compiled = circuit.compile(model)
    expected = logits[:, list(ANSWERS.values())]
    torch.testing.assert_close(compiled(tokens), expected, rtol=0, atol=1e-12)
    assert f"v[{channel}] = {float(w_v[c_in, channel]):.4g} read[{c_in}]" in str(compiled)
    assert f"x[{c_out}] += {float(w_o[channel, c_out]):.4g} sum_j pattern0[i,j]" in str(compiled)


@pytest.mark.parametrize("kind", ["the demo's kind", "layer norm", "learned positions"])
def test_it_is_saved_and_loaded_to_the_last_bit(kind, tokens, tmp_path):
    sparsity, shape = KINDS[kind]
    model = make_model(sparsity, **(DOUBLE | shape))
    compiled = random_circuit(model, 5).compile(model, max_rivals=1.0)
    compiled.save(tmp_path / "circuit.safetensors")
    again = CompiledCircuit.load(tmp_path / "circuit.safetensors")
    assert torch.equal(again(tokens, LAST), compiled(tokens, LAST))
    assert again.answers == ANSWERS
    assert str(again) == str(compiled)


def test_other_numbers_loaded_into_it_are_used_everywhere(tokens):
    model = make_model(SPARSE, **DOUBLE)
    compiled = random_circuit(model, 5).compile(model, max_rivals=1.0)
    expected = compiled(tokens, LAST)
    state = {name: tensor.clone() for name, tensor in compiled.state_dict().items()}
    for parameter in compiled.parameters():
        parameter.zero_()
    compiled.tabulate()
    assert not torch.equal(compiled(tokens, LAST), expected)
    compiled.load_state_dict(state)
    assert torch.equal(compiled(tokens, LAST), expected)
    assert torch.equal(deepcopy(compiled)(tokens, LAST), expected)


def test_files_that_are_no_compiled_circuit_are_refused(tmp_path):
    model = make_model(SPARSE, **DOUBLE)
    path = tmp_path / "circuit.safetensors"
    random_circuit(model, 5).compile(model, max_rivals=1.0).save(path)
    (tmp_path / "short").write_bytes(path.read_bytes()[:-100])
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name, match in (
        ("absent", "No compiled circuit could be read"),
        ("short", "No compiled circuit could be read"),
        ("other", "is no compiled circuit of this format"),
    ):
        with pytest.raises(ValueError, match=match):
            CompiledCircuit.load(tmp_path / name)


def test_a_model_with_dense_weights_under_abs_topk_is_refused():
    model = make_model(SparsityConfig(activation_density=0.25), **DOUBLE)
    with pytest.raises(ValueError, match="channels that compete under AbsTopK at sublayer 0, q"):
        random_circuit(model, 0).compile(model)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_hash": "another"}, "was found in another model"),
        ({"ablation": "resample_pair", "references": {}}, "this needs constants"),
        ({"provenance": {}}, "Pass answers="),
        ({"provenance": {"answers": {"a": 50}}}, "Answers are tokens below 50"),
    ],
)
def test_circuits_that_cannot_be_compiled_say_why(changes, match):
    model = make_model(SPARSE, **DOUBLE)
    with pytest.raises(ValueError, match=match):
        replace(random_circuit(model, 0), **changes).compile(model)


def test_models_that_tables_cannot_hold_say_why():
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 8}
    cases: list[tuple[SparsityConfig, dict[str, Any], str]] = [
        (SPARSE, {"normalization_type": "LNPre"}, "AbsTopK reads behind a layer norm"),
        (NO_RIVALS, rotary, "positions are rotary"),
        (SparsityConfig(position_channels=4), {}, "there are position channels"),
    ]
    for sparsity, shape, match in cases:
        model = make_model(sparsity, **(DOUBLE | shape))
        with pytest.raises(ValueError, match=match):
            random_circuit(model, 0).compile(model)
    stock = HookedTransformer(SHAPE)
    with pytest.raises(ValueError, match="knows the blocks of a HookedSparseTransformer"):
        random_circuit(stock, 0).compile(stock)


def test_prompts_that_the_model_could_not_read_are_refused():
    model = make_model(SPARSE, **DOUBLE)
    compiled = random_circuit(model, 0).compile(model, max_rivals=1.0)
    with pytest.raises(ValueError, match="reads at most 16 tokens, got 17"):
        compiled(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="Tokens are from 0 to 49, got 0 to 50"):
        compiled(torch.tensor([[0, 50]]))
