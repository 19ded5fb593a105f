"""`audit`: every measurement in a row, and the report that comes of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, pair_references, resampled_references
from tl_sparse.auditing.controls import controls
from tl_sparse.auditing.findings import AuditReport, Finding
from tl_sparse.auditing.generality import generality
from tl_sparse.auditing.mechanism import mechanism
from tl_sparse.auditing.minimality import drop_one, minimality
from tl_sparse.auditing.necessity import necessity
from tl_sparse.auditing.sizes import Curves, add_one, over_sizes
from tl_sparse.auditing.subject import Subject
from tl_sparse.auditing.sufficiency import sufficiency
from tl_sparse.auditing.surroundings import surroundings
from tl_sparse.auditing.worth import worth
from tl_sparse.checkpoints import versions
from tl_sparse.circuit import Circuit
from tl_sparse.circuit_checks import check_circuit, check_question
from tl_sparse.config import AuditConfig
from tl_sparse.data import Corpus
from tl_sparse.pruning import named_references
from tl_sparse.pruning.others import check_lengths
from tl_sparse.pruning.prune import frozen_parameters
from tl_sparse.tasks import PairTask, Task


def audit(
    model: HookedTransformer,
    circuit: Circuit,
    task: Task,
    corpus: Corpus | None = None,
    config: AuditConfig | None = None,
    *,
    progress: bool = True,
) -> AuditReport:
    """Try to prove a circuit wrong, and say how it went; the model is left as it was.

    Measured are the claims sufficient, necessary, robust, same mechanism, general and minimal, and,
    with `config.n_control_seeds`, better than chance and stable, by pruning again. With the
    `corpus` the circuit is also tried under the corpus mean and under resampling from the corpus; a
    circuit found by resampling from the corpus cannot be audited without it.

    Raises:
        ValueError: If the circuit is another model's or does not fit it, was found on another task,
            has no node or none that its edges leave, a prompt is too long, or a loss is NaN or
            infinite.
    """
    config = config or AuditConfig()
    check_circuit(circuit, model, resampling=True, latents=True, bundles=True)
    check_question(circuit, task.name)
    check_lengths(model, task)
    own = circuit_references(model, circuit, corpus)
    if config.n_control_seeds and circuit.ablation == "corpus_mean" and corpus is None:
        raise ValueError(
            "Control prunings of a circuit found under the corpus mean measure it on other models, "
            "and need the corpus: audit(model, circuit, task, corpus)."
        )

    def measure(other: HookedTransformer) -> References:
        like = {k: v for k, v in own.provenance.items() if k in ("n_tokens", "n_windows", "seed")}
        return named_references(circuit.ablation, other, task, corpus, **like)

    curves: Curves = {}
    with frozen_parameters(model):
        subject = Subject(model, circuit, task, own, config)
        if not any(kept.any() for kept in subject.selection.nodes.values()):
            raise ValueError(
                f"The circuit for {circuit.task} has no node left: none of its {circuit.n_nodes} "
                "has an edge into it, so that all are dropped, and there is nothing to audit. Add "
                "the edges."
            )
        findings = list(_findings(subject, corpus, curves, progress))
        costs = drop_one(subject, progress)
        findings += minimality(subject, costs, curves)
        measures = over_sizes(subject, costs, curves, progress)
        add_one(subject, curves, progress)
        nodes, edges = worth(subject, progress)
        more, again = controls(subject, measure, progress)
        for other in again:
            theirs = _findings(Subject(model, other, task, own, config), corpus, {}, progress)
            findings = _with_values_of(findings, theirs)
        findings += more
    provenance = {
        "audit": config.to_dict(),
        "model": circuit.model_hash,
        "n_nodes": circuit.n_nodes,
        "n_edges": circuit.n_edges,
        "losses": {"whole": subject.whole, "circuit": subject.alone, "empty": subject.empty},
        "versions": versions(),
    }
    return AuditReport(task.name, tuple(findings), curves, measures, nodes, edges, provenance)


def _findings(
    subject: Subject, corpus: Corpus | None, curves: Curves, progress: bool
) -> Iterator[Finding]:
    """Measure what takes no other pruning and no other circuit."""
    others = other_references(subject.model, subject.circuit, subject.task, corpus)
    yield from sufficiency(subject, others)
    yield from necessity(subject, progress)
    yield from surroundings(subject, progress)
    yield from mechanism(subject, curves, progress)
    yield from generality(subject, corpus, curves)


def _with_values_of(findings: list[Finding], others: Iterable[Finding]) -> list[Finding]:
    """Add to each finding its value on the circuit of another seed."""
    values = {(other.claim, other.name): other.value for other in others}
    return [
        replace(one, over_seeds=(*one.over_seeds, values[one.claim, one.name]))
        if (one.claim, one.name) in values
        else one
        for one in findings
    ]


def circuit_references(
    model: HookedTransformer, circuit: Circuit, corpus: Corpus | None
) -> References:
    """Give the values of what is out, as the circuit was found under.

    Raises:
        ValueError: If they come from the corpus, and it is not given.
    """
    noted = circuit.provenance.get("references", {})
    if circuit.ablation == "resample_pair":
        return pair_references(model)
    if circuit.ablation == "resample_corpus":
        if corpus is None:
            raise ValueError(
                "The circuit was found by resampling from the corpus, which the audit needs: "
                "audit(model, circuit, task, corpus)."
            )
        n, seed = noted.get("n_windows", 1024), noted.get("seed", 0)
        return resampled_references(model, corpus, n_windows=n, seed=seed)
    like = next(model.parameters()).detach()
    values = {site: like.new_tensor(some) for site, some in circuit.references.items()}
    return References(values, circuit.ablation, circuit.model_hash, noted)


def other_references(
    model: HookedTransformer, circuit: Circuit, task: Task, corpus: Corpus | None
) -> Mapping[str, References]:
    """Give the ablations, beside the circuit's own, that task and corpus allow."""
    names = ["zero", "task_mean"]
    if isinstance(task, PairTask) and task.equal_lengths:
        names.append("resample_pair")
    if corpus is not None:
        names += ["corpus_mean", "resample_corpus"]
    return {
        name: named_references(name, model, task, corpus)
        for name in names
        if name != circuit.ablation
    }
