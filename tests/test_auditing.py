"""The audit on models whose mechanism is known: the truth passes, each wrong circuit fails a line.

The task: of seven letters one is marked; after them comes `a` if the marked one is of the first
kind, else `b`. The model: a head that finds the mark and moves its kind, and two neurons that turn
it into the answer. What else a model has stands in the test that needs it.
"""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from conftest import write_edges
from test_plants import TASK as MARKED
from test_plants import planted

from tl_sparse import Circuit, Edge, HookedSparseTransformer, Node, Site, site_map
from tl_sparse.ablation import zero_references
from tl_sparse.auditing import MIB_SHARES, AuditReport, Finding, audit, cmd, cpr, faithfulness
from tl_sparse.auditing.controls import with_random_parameters, with_shuffled_weights
from tl_sparse.auditing.minimality import drop_one
from tl_sparse.auditing.subject import Subject, random_like
from tl_sparse.config import AuditConfig, PruningConfig
from tl_sparse.sites import joint_matrix, model_hash
from tl_sparse.tasks import Pair, PairTask, from_held_out, nonsense, resampled

ONE, MARK, KIND, MOVED, YES, NO, EITHER, EARLY, LATE, MARKED_KIND, SPARE, MOVED_TOO = range(12)
"""Channels of the stream: a constant, the mark, the kind, the kind where it is moved to, the two
answers, 0 or 2 by the letter, the kind of variants 0 and 1 and of 2, the kind where marked, and
what is left to write to."""

CONFIG = AuditConfig(n_random=20, n_subsets=20, n_adversarial_steps=20, n_examples=32)
EdgeList = list[tuple[str, str, float]]

FIND = [(f"0.attn_in.{ONE}", "0.q.0", 4.0), (f"0.attn_in.{MARK}", "0.k.0", 4.0)]
MOVE = [(f"0.attn_in.{KIND}", "0.v.1", 1.2), ("0.v.1", f"0.attn_out.{MOVED}", 1.2)]


def neurons(first: int, size: float = 1.2, moved: int = MOVED) -> EdgeList:
    """Two neurons that turn the moved kind into the answer."""
    return [
        (f"0.mlp_in.{moved}", f"0.mlp_neuron.{first}", 1.2),
        (f"0.mlp_in.{moved}", f"0.mlp_neuron.{first + 1}", -1.2),
        (f"0.mlp_neuron.{first}", f"0.mlp_out.{YES}", size),
        (f"0.mlp_neuron.{first + 1}", f"0.mlp_out.{NO}", size),
    ]


TRUTH = FIND + MOVE + neurons(0)


class Letters:
    """A tokenizer of one token for each of twelve letters."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Give the letters' numbers."""
        return [ord(letter) - ord("a") for letter in text]


def marked_pairs() -> PairTask:
    """Letters: kind + 2 x (variant below 3) + 6 x marked; only held-out ones mark variant 2."""
    rng, pairs, seen = random.Random(0), {}, set()
    for split, n in (("train", 64), ("validation", 48), ("test", 48), ("held_out", 48)):
        pairs[split] = []
        while len(pairs[split]) < n:
            word, place = [rng.randrange(6) for _ in range(7)], rng.randrange(6)
            variant = 2 if split == "held_out" else rng.randrange(2)
            texts = []
            for kind in (0, 1):
                word[place] = kind + 2 * variant + 6
                texts.append("".join(chr(ord("a") + letter) for letter in word))
            if texts[0] not in seen:
                seen |= set(texts)
                pairs[split].append(Pair((texts[0], texts[1]), ("a", "b")))
    return PairTask("marked", pairs, tokenizer=Letters())


TASK = marked_pairs()


def grow(edges: EdgeList, *, sure: float = 5.0) -> HookedSparseTransformer:
    """A model with these weights and no other in its block."""
    shape = {
        "n_layers": 1, "d_model": 12, "n_heads": 2, "d_head": 4, "d_mlp": 12, "n_ctx": 8,
        "d_vocab": 12, "act_fn": "relu", "normalization_type": None, "device": "cpu",
        "positional_embedding_type": "none",
    }  # fmt: skip
    model = HookedSparseTransformer(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for token in range(12):
            kind, third = 1.0 - 2 * (token % 2), token % 6 >= 4
            model.embed.W_E[token, ONE] = 1
            model.embed.W_E[token, MARK] = float(token >= 6)
            model.embed.W_E[token, KIND] = kind
            model.embed.W_E[token, EITHER] = 2.0 * (token % 4 >= 2)
            model.embed.W_E[token, EARLY] = kind * (not third)
            model.embed.W_E[token, LATE] = kind * third
            model.embed.W_E[token, MARKED_KIND] = kind * (token >= 6)
        model.unembed.W_U[YES, 0] = model.unembed.W_U[NO, 1] = sure
    write_edges(model, edges)
    return model


def circuit_of(model: HookedSparseTransformer, edges: EdgeList, task: str = "marked") -> Circuit:
    """The circuit of some weights, under zero ablation."""
    found, nodes = [], set()
    ends = {(source, target) for source, target, _ in edges}
    sites = site_map(model)
    for joint in sites.joints:
        matrix = joint_matrix(model, joint)
        for s, t in (matrix != 0).nonzero().tolist():
            source, target = Node(joint.source, s), Node(joint.target, t)
            if (str(source), str(target)) in ends:
                found.append(Edge(source, target, float(matrix[s, t])))
                nodes |= {source, target}
    assert len(found) == len(ends)
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(found),
        references={info.site: (0.0,) * info.width for info in sites.sites},
        task=task,
        model_hash=model_hash(model),
        ablation="zero",
        target_loss=0.05,
    )


def failed(report: AuditReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        if not finding.holds:
            found.setdefault(finding.claim, []).append(finding.name)
    return found


def run(model, edges) -> AuditReport:
    return audit(model, circuit_of(model, edges), TASK, config=CONFIG, progress=False)


QUIET = [
    (f"0.attn_in.{EITHER}", "0.v.5", 0.7), ("0.v.5", f"0.attn_out.{SPARE}", 0.9),
    (f"0.mlp_in.{EITHER}", "0.mlp_neuron.8", 0.6), ("0.mlp_neuron.8", f"0.mlp_out.{SPARE}", 1.0),
]  # fmt: skip
"""Weights that no answer depends on."""


def test_the_truth_passes_every_line():
    report = run(grow(TRUTH + QUIET), TRUTH)
    assert failed(report) == {}
    tested = {claim for claim, verdict in report.verdicts().items() if verdict == "holds"}
    assert tested == {"sufficient", "necessary", "robust", "same mechanism", "general", "minimal"}


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_planted_circuits_pass_too(seed):
    plant = planted(seed)
    circuit = circuit_of(plant.model, plant.truth)
    report = audit(plant.model, circuit, MARKED, config=CONFIG, progress=False)
    assert failed(report) == {}


SECOND = neurons(2)
AGAINST = neurons(4, size=-1.2)
"""The same neurons again, and such as undo the answer."""

SHIFT = [
    (f"0.mlp_in.{EITHER}", "0.mlp_neuron.6", 1.0), (f"0.mlp_in.{ONE}", "0.mlp_neuron.6", -1.0),
    (f"0.mlp_in.{EITHER}", "0.mlp_neuron.7", 1.0), (f"0.mlp_in.{ONE}", "0.mlp_neuron.7", -1.0),
    ("0.mlp_neuron.6", f"0.mlp_out.{YES}", 9.0), ("0.mlp_neuron.7", f"0.mlp_out.{YES}", -9.0),
]  # fmt: skip
"""Two neurons, on for half of the last letters, that cancel. At the mean of what it reads one is
off, and the other's own mean is not."""

LEAK = [(f"0.attn_in.{MARKED_KIND}", "0.v.1", 1.2), MOVE[1]]
LEAK_TOO = [(f"0.attn_in.{MARKED_KIND}", "0.v.5", 1.2), ("0.v.5", f"0.attn_out.{MOVED_TOO}", 1.2)]
"""Only the mark itself has a kind to move: no attention is needed. By either head."""

BY_VARIANT = [
    (f"0.attn_in.{EARLY}", "0.v.1", 1.2), MOVE[1], (f"0.attn_in.{LATE}", "0.v.1", 1.2)
]  # fmt: skip

WRONG = {
    "an edge is missing": (TRUTH + QUIET, TRUTH[:-1], "sufficient", "accuracy"),
    "a decoy is in it": (TRUTH + QUIET, TRUTH + QUIET[:2], "minimal", "removal"),
    "everything is in it": (TRUTH + QUIET, TRUTH + QUIET, "minimal", "removal"),
    "right nodes, wrong edges": (
        [*TRUTH, (f"0.attn_in.{KIND}", "0.k.0", 0.02)],
        [*(e for e in TRUTH if e != FIND[1]), (f"0.attn_in.{KIND}", "0.k.0", 0.02)],
        "sufficient", "test loss",
    ),
    "works under zero ablation only": (
        TRUTH + SHIFT, [*TRUTH, SHIFT[1], SHIFT[4]], "sufficient", "task mean",
    ),
    "one of two that do the same": (
        TRUTH + LEAK_TOO + neurons(2, moved=MOVED_TOO), TRUTH, "necessary", "circuit's edges out",
    ),
    "a path that another cancels": (
        TRUTH + SECOND + AGAINST, FIND + MOVE + SECOND, "robust", "random parts",
    ),
    "right where the model is wrong": (
        TRUTH + [(s, t, 2 * w if "mlp_neuron" in s else w) for s, t, w in AGAINST],
        TRUTH, "sufficient", "below the whole",
    ),
    "another attention than the model's": (
        FIND + LEAK + neurons(0), LEAK + neurons(0), "same mechanism", "patterns",
    ),
    "values that mean another thing": (
        [*TRUTH, (f"0.attn_in.{MARK}", "0.v.1", -9.0), ("0.v.2", f"0.attn_out.{MOVED}", 10.0),
         (f"0.attn_in.{MARK}", "0.v.2", 1.2)],
        TRUTH, "same mechanism", "variance",
    ),
    "a circuit for some templates": (
        FIND + BY_VARIANT + neurons(0), FIND + BY_VARIANT[:2] + neurons(0),
        "general", "held-out templates",
    ),
    "half of it is done by others too": (
        TRUTH + SECOND, TRUTH, "same mechanism", "edges that matter",
    ),
}  # fmt: skip
"""Of each wrong circuit: the model's weights, the circuit's, the claim and the line that fails."""


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_circuit_fails_the_line_made_for_it(kind):
    weights, edges, claim, line = WRONG[kind]
    sure = 60.0 if any(int(source.split(".")[2]) == MARKED_KIND for source, *_ in weights) else 5.0
    report = run(grow(weights, sure=sure), edges)
    assert any(line in name for name in failed(report).get(claim, [])), str(report)


def test_areas_are_those_of_mib():
    ones, zeros = [1.0] * len(MIB_SHARES), [0.0] * len(MIB_SHARES)
    assert (cpr(MIB_SHARES, ones), cmd(MIB_SHARES, ones)) == pytest.approx((0.999, 0))
    assert (cpr(MIB_SHARES, zeros), cmd(MIB_SHARES, zeros)) == pytest.approx((0, 0.999))
    below = [0.3] * len(MIB_SHARES)
    assert cpr(MIB_SHARES, below) + cmd(MIB_SHARES, below) == pytest.approx(0.999)
    # signed and absolute differ where the circuit is better than the model
    above = [1.5] * len(MIB_SHARES)
    assert (cpr(MIB_SHARES, above), cmd(MIB_SHARES, above)) == pytest.approx((1.4985, 0.4995))
    assert cpr([0, 0.5, 1], [0, 1, 1]) == pytest.approx(0.75)
    assert faithfulness(2.0, empty=1.0, whole=3.0) == 0.5
    for bad in (lambda: cpr([0, 0], [1, 1]), lambda: cpr([0], [1]), lambda: cpr([0, 1], [1])):
        with pytest.raises(ValueError, match="share"):
            bad()
    with pytest.raises(ValueError, match="nothing to explain"):
        faithfulness(1.0, empty=2.0, whole=2.0)


def test_edges_are_dropped_on_all_examples_that_the_circuit_was_chosen_by():
    model = grow(TRUTH + QUIET)
    few = replace(CONFIG, n_examples=2)
    subject = Subject(model, circuit_of(model, TRUTH), TASK, zero_references(model), few)
    costs = drop_one(subject, progress=False)
    assert len(costs) == len(TRUTH)
    batch = TASK.batch("validation")
    for edge, cost in costs.items():
        ends = (str(edge.source), str(edge.target))
        alone = grow([one for one in TRUTH if one[:2] != ends])
        logits = alone(batch.tokens)[:, -1, :2]
        right = torch.nn.functional.cross_entropy(logits, batch.correct).item()
        assert cost == pytest.approx(right, rel=1e-5)


def test_random_sets_have_as_many_nodes_at_each_site():
    model = grow(TRUTH + QUIET)
    subject = Subject(model, circuit_of(model, TRUTH), TASK, zero_references(model), CONFIG)
    members, generator = subject.members(), torch.Generator().manual_seed(0)
    drawn = [random_like(members, subject.outside(), generator) for _ in range(20)]
    assert all(int(d[s].sum()) == int(kept.sum()) for d in drawn for s, kept in members.items())
    assert not any((d[s] & kept).any() for d in drawn for s, kept in members.items())
    assert len({str(d) for d in drawn}) == 20


def test_a_report_is_saved_and_read_by_people(tmp_path):
    findings = (
        Finding("sufficient", "loss", 0.1, 0.15, at_most=True, why="asked for"),
        Finding("sufficient", "gain", math.nan, 0.5, at_most=False, why="half", control=1.0,
                control_name="whole", spread=(0.1, 0.9)),
        Finding("minimal", "needless", 0.0, 0.0, at_most=True, why="none"),
    )  # fmt: skip
    report = AuditReport("toy", findings, {"curve": [(1.0, 0.5)]})
    report.save(tmp_path / "audit.json")
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert saved["verdicts"]["sufficient"] == "fails"
    assert saved["verdicts"]["minimal"] == "holds"
    assert saved["verdicts"]["stable"] == "not tested"
    assert saved["findings"][1]["value"] is None
    assert saved["curves"]["curve"] == [[1.0, 0.5]]
    assert "FAILS  gain: nan (0.1 to 0.9) >= 0.5; whole: 1" in str(report)
    assert repr(report) == "AuditReport(toy: 1 holds, 1 fails, 6 not tested)"


def test_the_same_seed_gives_the_same_report():
    model = grow(TRUTH + QUIET)
    assert run(model, TRUTH).to_dict() == run(model, TRUTH).to_dict()


def lines(report: AuditReport) -> dict[str, float]:
    return {finding.name: finding.value for finding in report.findings}


def dropped_by(circuit: Circuit) -> tuple[Node, ...]:
    """The nodes that take part only by their in-edges."""
    return tuple(node for node in circuit.nodes if not node.site.name.endswith("_in"))


def test_a_circuit_without_a_target_is_not_held_to_one(tmp_path):
    model = grow(TRUTH + QUIET)
    circuit = replace(circuit_of(model, TRUTH), target_loss=math.nan)
    report = audit(model, circuit, TASK, config=CONFIG, progress=False)
    verdicts = report.verdicts()
    assert [claim for claim, verdict in verdicts.items() if verdict == "not tested"] == [
        "sufficient", "better than chance", "minimal", "stable"
    ]  # fmt: skip
    assert "fails" not in verdicts.values()
    assert "    not tested  test loss of the circuit alone: " in str(report)
    assert "nan" not in str(report)
    report.save(tmp_path / "audit.json")
    assert str(AuditReport.load(tmp_path / "audit.json")) == str(report)
    less = replace(circuit_of(model, TRUTH[:-1]), target_loss=math.nan)  # fails by another line
    report = audit(model, less, TASK, config=CONFIG, progress=False)
    assert report.verdicts()["sufficient"] == "fails"


def test_circuits_of_two_seeds_together_are_audited_on_their_task():
    model = grow(TRUTH + QUIET)
    one, other = circuit_of(model, TRUTH + QUIET[:2]), circuit_of(model, TRUTH + QUIET[2:])
    report = audit(model, one & other, TASK, config=CONFIG, progress=False)
    assert lines(report) == lines(run(model, TRUTH))
    assert failed(report) == {}


def test_nodes_without_an_edge_are_audited():
    model = grow(TRUTH + QUIET)
    bare = replace(circuit_of(model, TRUTH), edges=())
    report = audit(model, bare, TASK, config=CONFIG, progress=False)
    assert lines(report)["test accuracy of the circuit alone"] <= 0.5
    assert report.verdicts()["sufficient"] == "fails"
    assert report.verdicts()["minimal"] == "not tested"
    assert report.edges == ()
    assert {effect.part for effect in report.nodes} == {
        str(node) for node in set(bare.nodes) - set(dropped_by(bare))
    }


def test_nodes_that_are_dropped_have_no_part_in_an_audit():
    model = grow(TRUTH + QUIET)
    circuit = circuit_of(model, TRUTH)
    extra = (Node(Site(0, "mlp_neuron"), 8), Node(Site(0, "v"), 5), Node(Site(0, "q"), 6))
    more = replace(circuit, nodes=circuit.nodes + extra)
    report = audit(model, more, TASK, config=CONFIG, progress=False)
    assert lines(report) == lines(run(model, TRUTH))


def test_circuits_that_cannot_be_audited_say_why():
    model = grow(TRUTH)
    circuit = circuit_of(model, TRUTH)
    with pytest.raises(ValueError, match="another model"):
        audit(grow(TRUTH + QUIET), circuit, TASK, config=CONFIG)
    with pytest.raises(ValueError, match="found on the task 'other'"):
        audit(model, circuit_of(model, TRUTH, "other"), TASK, config=CONFIG)
    with pytest.raises(ValueError, match="no node"):
        audit(model, circuit_of(model, []), TASK, config=CONFIG)
    with pytest.raises(ValueError, match=r"no node left: none of its 3 has an edge into it"):
        audit(model, replace(circuit, nodes=dropped_by(circuit)[:3], edges=()), TASK, config=CONFIG)
    of_two = replace(circuit, task="other | marked")
    with pytest.raises(ValueError, match=r"replace\(circuit, task='marked'\)"):
        audit(model, of_two, TASK, config=CONFIG)
    references = {site: (3e38,) * len(v) for site, v in circuit.references.items()}
    with pytest.raises(ValueError, match="NaN or infinite"):
        audit(model, replace(circuit, references=references), TASK, config=CONFIG)
    with pytest.raises(ValueError, match="n_random"):
        AuditConfig(n_random=0)


PRUNING = PruningConfig(
    target_loss=0.05, n_steps=40, n_edge_steps=20, batch_size=16, learning_rate=0.05, exchange=False
)


def chance_report(model, n_control_seeds: int) -> AuditReport:
    circuit = replace(circuit_of(model, TRUTH), provenance={"pruning": PRUNING.to_dict()})
    config = replace(CONFIG, n_random=2, n_subsets=2, n_adversarial_steps=2)
    config = replace(config, n_control_seeds=n_control_seeds)
    return audit(model, circuit, TASK, config=config, progress=False)


def test_where_nothing_else_can_be_found_the_circuit_is_better_than_chance_and_stable():
    many = [
        (f"0.mlp_in.{c}", f"0.mlp_neuron.{n}", 0.3) for c in (EITHER, ONE) for n in range(4, 12)
    ]
    model = grow(TRUTH + QUIET + many)
    report = chance_report(model, 2)
    verdicts = report.verdicts()
    assert verdicts["stable"] == "holds"
    found = {finding.name: finding for finding in report.of("better than chance")}
    # nothing answers nonsense here, and nothing exchanged labels anywhere: the whole model counts
    for what in ("nonsense answers", "shuffled labels"):
        finding = found[f"edges of {what} / edges of the circuit, nearest seeds"]
        n_whole = len({(source, target) for source, target, _ in TRUTH + QUIET + many})
        assert finding.value == pytest.approx(n_whole / len(TRUTH))
        assert finding.holds


def test_a_model_in_which_nonsense_is_as_easy_is_called_out():
    model = grow(TRUTH + QUIET)
    with torch.no_grad():
        one, other = nonsense(TASK, seed=0).encoded("train")[0].answers  # what will be asked for
        model.unembed.W_U[YES, one] = model.unembed.W_U[NO, other] = 5.0
    report = chance_report(model, 1)
    name = "edges of nonsense answers / edges of the circuit, nearest seeds"
    (finding,) = (f for f in report.of("better than chance") if f.name == name)
    assert finding.value == 1.0
    assert report.verdicts()["better than chance"] == "fails"


def test_nonsense_keeps_the_prompts_and_the_rule():
    other = nonsense(TASK, seed=3)
    for split in ("train", "held_out"):
        assert [p.prompts for p in other.pairs[split]] == [p.prompts for p in TASK.pairs[split]]
        answers = {pair.answers for pair in other.encoded(split)}
        assert len(answers) == 1
        assert not set(answers.pop()) & set(TASK.answer_ids.values())
    assert nonsense(TASK, seed=3).answer_ids == other.answer_ids


def test_prompts_are_resampled_and_exchanged_for_other_forms():
    for seed in (0, 1):
        other = resampled(TASK, seed=seed)
        for split in ("train", "validation"):
            assert len(other.pairs[split]) == len(TASK.pairs[split])
            assert 0.5 < len(set(other.pairs[split])) / len(TASK.pairs[split]) < 0.8
            assert set(other.pairs[split]) <= set(TASK.pairs[split])
        assert other.pairs["test"] == TASK.pairs["test"]
    assert resampled(TASK, seed=0).pairs != resampled(TASK, seed=1).pairs
    forms = from_held_out(TASK)
    assert not forms.pairs["held_out"]
    trained_on = {*forms.pairs["train"], *forms.pairs["validation"]}
    assert trained_on == set(TASK.pairs["held_out"])
    with pytest.raises(ValueError, match="0 held-out pairs"):
        from_held_out(forms)


def test_control_models_have_their_weights_at_the_same_places():
    model = grow(TRUTH + QUIET)
    before = model_hash(model)
    shuffled, random_one = with_shuffled_weights(model), with_random_parameters(model)
    assert model_hash(model) == before
    for name, parameter in model.named_parameters():
        for other in (shuffled, random_one):
            assert torch.equal(other.get_parameter(name) != 0, parameter != 0)
        mixed = shuffled.get_parameter(name)
        assert torch.equal(mixed.flatten().sort().values, parameter.flatten().sort().values)
    assert not torch.equal(shuffled.blocks[0].mlp.W_in, model.blocks[0].mlp.W_in)
    assert not torch.equal(random_one.embed.W_E, model.embed.W_E)
    assert model_hash(with_random_parameters(model)) == model_hash(random_one)
    assert model_hash(with_random_parameters(model, seed=1)) != model_hash(random_one)


def test_controls_under_the_corpus_mean_need_the_corpus():
    model = grow(TRUTH)
    circuit = replace(circuit_of(model, TRUTH), ablation="corpus_mean")
    with pytest.raises(ValueError, match="need the corpus"):
        audit(model, circuit, TASK, config=replace(CONFIG, n_control_seeds=1))
