"""`scene`: all that the viewer shows of one circuit, measured and put together as plain data."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from transformer_lens import HookedTransformer

from tl_sparse.auditing import CLAIMS, AuditReport
from tl_sparse.auditing.run import circuit_references
from tl_sparse.auditing.subject import Subject
from tl_sparse.circuit import Circuit, Node
from tl_sparse.circuit_checks import check_circuit, check_question
from tl_sparse.config import AuditConfig
from tl_sparse.data import Corpus
from tl_sparse.displays import NOT_AUDITED
from tl_sparse.drawing import draw_circuit
from tl_sparse.explain import explain
from tl_sparse.interface import residual_links, running_part
from tl_sparse.pruning.prune import frozen_parameters
from tl_sparse.rules import POSITIVE_INTEGER
from tl_sparse.selection import interface_counts
from tl_sparse.sites import site_map
from tl_sparse.tasks import PairTask
from tl_sparse.viewer.samples import Texts, channels_of, prompt_samples, text_examples
from tl_sparse.viewer.worth import Worth, worth
from tl_sparse.wording import ExplainedNode, Explanation

MAX_DRAWN = 500
"""Edges that are drawn at most, those that are worth most."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One circuit, ready to be looked at: `write_viewer` makes a page of one or two."""

    title: str
    drawing: str = field(repr=False)
    """The circuit as SVG."""
    data: Mapping[str, Any] = field(repr=False)
    """All else, as JSON values."""

    def __repr__(self) -> str:
        """One line."""
        nodes, edges = len(self.data["nodes"]), len(self.data["edges"])
        return f"Scene({self.title}: {nodes} nodes, {edges} edges)"


def scene(
    model: HookedTransformer,
    circuit: Circuit,
    task: PairTask,
    corpus: Corpus | None = None,
    report: AuditReport | None = None,
    *,
    title: str = "",
    n_examples: int = 5,
    n_pairs: int = 6,
    n_windows: int = 512,
    progress: bool = True,
) -> Scene:
    """Measure all that the viewer shows of a circuit; the model is left as it was.

    With the `corpus` each node has the `n_examples` places of `n_windows` of its validation text
    where it is highest and lowest; with the `report` of an audit its verdicts are in sight. Values
    on the task's prompts are those while the circuit alone runs (a circuit that was found by
    resampling: while the whole model runs).

    Raises:
        ValueError: If the circuit is another model's, was found on another task, or is of SAE
            latents; if the report is another circuit's; if a number is not positive.
    """
    for name, number in (
        ("n_examples", n_examples),
        ("n_pairs", n_pairs),
        ("n_windows", n_windows),
    ):
        POSITIVE_INTEGER.check(name, number)
    _check(model, circuit, task, report)
    whole, circuit = circuit, running_part(circuit, model)
    refs = circuit_references(model, circuit, corpus)
    settings = replace(AuditConfig(), max_edges=max(1, circuit.n_edges))
    with frozen_parameters(model):
        subject = Subject(model, circuit, task, refs, settings)
        value = worth(subject, progress=progress)
        texts = Texts(model)
        examples = {}
        if corpus is not None:
            examples = text_examples(
                model, circuit.nodes, corpus, texts, n_windows=n_windows, n_examples=n_examples,
                progress=progress,
            )  # fmt: skip
        prompts, values, heads = prompt_samples(
            model, circuit, circuit.nodes, task, texts, n_pairs=n_pairs
        )
    words = explain(_with_constants(circuit, model), model, task)
    about = {node.node: node for node in words.nodes}
    n_interface, n_biases = interface_counts(model, channels_of(whole.nodes))
    nodes = [
        _node(about[str(node)], node, value, circuit)
        | {"examples": examples.get(node), "prompts": values[node]}
        for node in circuit.nodes
    ]
    data = {
        "task": circuit.task,
        "key": hashlib.sha256(whole.to_json().encode()).hexdigest()[:16],
        "model": circuit.model_hash,
        "ablation": circuit.ablation,
        "target": circuit.target_loss,
        "losses": {"whole": subject.whole, "circuit": subject.alone, "empty": subject.empty},
        "accuracy": {"whole": subject.whole_accuracy, "circuit": subject.alone_accuracy},
        "n_interface": n_interface,
        "n_biases": n_biases,
        "answers": list(words.answers),
        "d_head": model.cfg.d_head,
        "notes": list(words.notes),
        "nodes": nodes,
        "edges": [
            {"source": str(e.source), "target": str(e.target), "weight": e.weight,
             "worth": value.edges[e.source, e.target], "enters": value.enters[e.source, e.target]}
            for e in circuit.edges
        ],
        "heads": [asdict(head) for head in words.heads],
        "patterns": heads,
        "prompts": prompts,
        "texts": texts.texts,
        "sizes": [list(point) for point in value.sizes],
        "tried": [list(point) for point in circuit.edge_curve],
        "not_audited": NOT_AUDITED,
        "audit": None if report is None else _audit(report),
        "circuit": json.loads(whole.to_json()),
        "labels": dict(whole.labels),
        "groups": dict(whole.groups),
    }  # fmt: skip
    drawing = _drawing(circuit, words, value)
    return Scene(title=title or circuit.task, drawing=drawing, data=_finite(data))


def _check(
    model: HookedTransformer, circuit: Circuit, task: PairTask, report: AuditReport | None
) -> None:
    if "saes" in circuit.provenance:
        raise ValueError(
            f"The nodes of the circuit {circuit.task} are SAE latents, and the viewer shows "
            "circuits of channels. Draw it with tl_sparse.drawing.draw_circuit."
        )
    check_circuit(circuit, model, resampling=True)
    check_question(circuit, task.name)
    if report is None:
        return
    mine = (circuit.task, circuit.model_hash, circuit.n_nodes, circuit.n_edges)
    about = report.provenance
    theirs = (report.task, *(about.get(name) for name in ("model", "n_nodes", "n_edges")))
    if mine != theirs:
        raise ValueError(
            f"The audit is of another circuit: (task, model, nodes, edges) are {theirs}, those of "
            f"the circuit are {mine}. Audit this one: audit(model, circuit, task, corpus)."
        )


def _with_constants(circuit: Circuit, model: HookedTransformer) -> Circuit:
    """Give a circuit that can be explained: one found by resampling has no constants, take 0."""
    if not circuit.resamples:
        return circuit
    zeros = {info.site: (0.0,) * info.width for info in site_map(model, final=True).sites}
    return replace(circuit, ablation="zero", references=zeros)


def _node(about: ExplainedNode, node: Node, value: Worth, circuit: Circuit) -> dict[str, Any]:
    """Give what is known of a node by itself."""
    found = asdict(about)
    for name in ("inputs", "outputs"):  # the edges have them
        del found[name]
    found["id"] = found.pop("node")
    if circuit.resamples:
        found |= {"reference": None, "constant": None}
    return found | {"worth": value.nodes[node], "worth_in_model": value.nodes_in_model[node]}


def _audit(report: AuditReport) -> dict[str, Any]:
    """Give the verdicts with the lines behind them."""
    verdicts = report.verdicts()
    return {
        "verdicts": [
            {"claim": claim, "verdict": verdicts[claim], "says": says,
             "lines": [str(finding) for finding in report.of(claim)]}
            for claim, says in CLAIMS.items()
        ]
    }  # fmt: skip


def _drawing(circuit: Circuit, words: Explanation, value: Worth) -> str:
    reads = [n for n in words.nodes if n.site in ("attn_in", "mlp_in")]
    reads = [n for n in reads if n.highest or n.lowest]
    n_lines = 4 if len(reads) <= 24 else 1
    tokens = {}
    for node in reads:
        some = sorted(node.highest + node.lowest, key=lambda pair: -abs(pair[1]))
        found = dict(node.task_tokens) | dict(some)
        tokens[node.channel] = [pair for pair in found.items() if pair[1]][:n_lines]
    by_name = {str(node): node for node in circuit.nodes}
    return draw_circuit(
        circuit,
        residual=residual_links(circuit),
        tokens=tokens,
        logits=[(by_name[n.node], *pair) for n in words.nodes for pair in n.logits],
        d_head=words.d_head,
        d_model=words.d_model,
        max_edges=MAX_DRAWN,
        importance={e: value.edges[e.source, e.target] for e in circuit.edges},
    )


def _finite(value: Any) -> Any:
    """Give JSON values; numbers that are not finite are null, and floats have seven digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: v if k == "circuit" else _finite(v) for k, v in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
