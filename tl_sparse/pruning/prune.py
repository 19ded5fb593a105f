"""`prune`: the stages in a row, and the circuit that comes of them.

Node pruning of Gao et al. 2025 (arXiv 2511.13653, section 2.2 and A.5), then what its authors say
would be better, the same on single edges, and the clean-up that they did by hand:

1. gate: a task that the whole model can't do is not pruned,
2. nodes: learn a mask on every node, or score it (`config.method`); of the nested selections on the
   way take the smallest that reaches the target on the *validation* examples,
3. edges: learn a mask on every nonzero weight between these nodes, and choose the size alike. A cut
   edge shows its target the source's reference value,
4. clean up: take out, put back, and take out again until nothing can go,
5. report on the *test* examples, as the circuit is and calibrated.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References
from tl_sparse.checkpoints import versions
from tl_sparse.circuit import Circuit, edge_order
from tl_sparse.config import PruningConfig
from tl_sparse.pruning.calibration import Calibration, calibrated
from tl_sparse.pruning.cleanup import CleanUp
from tl_sparse.pruning.learning import LearningStopped, learn_edges, learn_nodes
from tl_sparse.pruning.others import check_arguments, check_lengths
from tl_sparse.pruning.scores import score_edges, score_nodes
from tl_sparse.pruning.sizes import Curve, choose_edges, choose_nodes
from tl_sparse.pruning.trial import Trial, evaluate
from tl_sparse.resampling import values_on
from tl_sparse.rules import checks_itself
from tl_sparse.selection import Selection, interface_counts
from tl_sparse.sites import coders_of, site_map
from tl_sparse.tasks import Task


class TaskGateError(ValueError):
    """The whole model is not accurate enough on the task for its circuit to mean anything.

    `losses` are the whole model's, under the names of `Circuit.losses`.
    """

    def __init__(self, message: str, losses: dict[str, float]) -> None:
        super().__init__(message)
        self.losses = losses


class UnreachableTargetError(ValueError):
    """No circuit on the path reaches the target loss.

    `best_loss` is the lowest one found, on the validation examples; `losses` are the whole model's.
    """

    def __init__(self, message: str, best_loss: float, losses: dict[str, float]) -> None:
        super().__init__(message)
        self.best_loss, self.losses = best_loss, losses


@checks_itself
def prune(
    model: HookedTransformer,
    task: Task,
    references: References,
    config: PruningConfig | None = None,
    *,
    force: bool = False,
    progress: bool = True,
) -> Circuit:
    """Find the circuit of a task in a model; the model is left as it was.

    `references` are the values that cut nodes take (`ablation.references`). `force` goes on with a
    task that fails the gate and marks the circuit as forced. Ctrl-C ends the search and gives
    the smallest circuit found so far, with `"interrupted"` in its provenance; while the nodes are
    still learned, that is the smallest by the masks as they are, and a second Ctrl-C gives up.

    Raises:
        TaskGateError: If the model's accuracy on the test examples is below `config.min_accuracy`.
        UnreachableTargetError: If no circuit on the path reaches `config.target_loss`.
        ValueError: If the references belong to another model, activations are NaN, a prompt is too
            long, q and k are tied where they are not pairs, or the task has no other prompts of the
            kind that the ablation takes values from.
    """
    config = config or PruningConfig()
    check_arguments(model, task, references, config)
    sites = site_map(model, final=config.mask_final)
    if config.tie_qk and model.cfg.n_key_value_heads:
        raise ValueError(
            "tie_qk keeps or drops the q and k node of one channel together, and under grouped "
            "queries several query heads share a key. Leave tie_qk out."
        )
    whole, accurate = check_gate(model, task, config, force=force)
    with frozen_parameters(model):
        n, seed = config.n_surroundings, config.seed
        trial = Trial(model, task, sites, references, n_surroundings=n, seed=seed)
        search = _Search(trial, config, progress)
        search.nodes(whole)
        search.refine()
        losses = {"validation": search.trial.evaluate(search.best, "validation")[0]}
        losses["test"], losses["test_accuracy"] = search.trial.evaluate(search.best, "test")
        fitted = calibrated(search.trial, search.best)
        if fitted is not None:
            losses["calibrated_test"], search.calibration = fitted
    return _circuit(search, losses=whole | losses, forced=not accurate)


@contextmanager
def frozen_parameters(model: HookedTransformer) -> Iterator[None]:
    """Let no gradient reach a model's parameters inside a `with` block; masks learn faster so.

    They learn by gradients, also where those were switched off for everything else.

    Raises:
        ValueError: In inference mode, in which there are none.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "Masks are learned by gradients, and torch.inference_mode() makes none. Leave it first."
        )
    required = [p for p in model.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


class _Search:
    """The stages of one call; `best` is the smallest selection so far that meets the target."""

    best: Selection

    def __init__(self, trial: Trial, config: PruningConfig, progress: bool) -> None:
        self.trial, self.config, self.progress = trial, config, progress
        self.stages: list[dict[str, Any]] = []
        self.curve: Curve = []
        self.edge_curve: Curve = []
        self.interrupted = False
        self.calibration: Calibration | None = None

    def nodes(self, whole: dict[str, float]) -> None:
        """Find the nodes, with every weight between them; Ctrl-C ends the learning early."""
        config, began = self.config, time.perf_counter()
        rank = learn_nodes if config.method == "learned" else score_nodes
        try:
            self.node_taus = rank(self.trial, config, self.progress)
        except LearningStopped as stopped:
            self.node_taus, self.interrupted = stopped.taus, True
        chosen, self.curve = choose_nodes(
            self.trial,
            self.node_taus,
            config.target_loss,
            tie_qk=config.tie_qk,
            progress=self.progress,
        )
        if chosen is None and self.interrupted:
            raise KeyboardInterrupt
        if chosen is None:
            best = min(loss for _, loss in self.curve)
            raise UnreachableTargetError(
                f"No circuit for {self.trial.task.name} reaches a loss of {config.target_loss}: "
                f"the lowest on the path is {best:.4f}. Raise target_loss, or search longer "
                "(n_steps).",
                best,
                whole,
            )
        self._stage("nodes", chosen, began)

    def refine(self) -> None:
        """Cut single edges, then clean up; Ctrl-C keeps what there is."""
        if self.interrupted:
            return
        clean_up: CleanUp | None = None
        pool, edge_taus = self.best, {}
        try:
            if self.config.edges:
                began = time.perf_counter()
                rank = learn_edges if self.config.method == "learned" else score_edges
                edge_taus = rank(self.trial, pool, self.config, self.progress)
                chosen, self.edge_curve = choose_edges(
                    self.trial, pool, edge_taus, self.config.target_loss, progress=self.progress
                )
                self._stage("edges", chosen, began)
            if self.config.drop_one:
                began = time.perf_counter()
                args = (self.best, pool, self.node_taus, edge_taus, self.config, self.progress)
                clean_up = CleanUp(self.trial, *args)
                self._stage("clean_up", clean_up.run(), began)
        except KeyboardInterrupt:
            self.interrupted = True
            self.best = self.best if clean_up is None else clean_up.best

    def _stage(self, name: str, selection: Selection, began: float) -> None:
        self.best = selection
        self.stages.append(
            {
                "stage": name,
                "n_nodes": selection.n_nodes,
                "n_edges": selection.n_edges,
                "seconds": round(time.perf_counter() - began, 2),
            }
        )


def check_gate(
    model: HookedTransformer, task: Task, config: PruningConfig, *, force: bool
) -> tuple[dict[str, float], bool]:
    """Give the whole model's losses, and whether it is accurate enough for the gate.

    Raises:
        TaskGateError: If it is not, without `force`.
        ValueError: If a prompt is too long or an activation NaN.
    """
    whole = _whole_model(model, task)
    accurate = whole["model_test_accuracy"] >= config.min_accuracy
    if not accurate and not force:
        raise TaskGateError(
            f"The model answers {whole['model_test_accuracy']:.1%} of the test prompts of "
            f"{task.name} right, less than the gate of {config.min_accuracy:.0%}: a "
            "circuit for it would mean little. Train longer or wider, choose another task, or pass "
            "force=True.",
            whole,
        )
    return whole, accurate


def _whole_model(model: HookedTransformer, task: Task) -> dict[str, float]:
    check_lengths(model, task)
    device = next(model.parameters()).device
    some = task.batch("train", range(min(64, task.n_examples("train")))).to(device)
    values_on(model, site_map(model), some.tokens)  # NaN is refused here, whatever the logits show
    validation, _ = evaluate(model, task, "validation")
    test, accuracy = evaluate(model, task, "test")
    if not math.isfinite(validation + test):
        raise ValueError(f"The model's logits on {task.name} are NaN or infinite.")
    return {
        "model_validation": validation,
        "model_test": test,
        "model_test_accuracy": accuracy,
    }


def _circuit(search: _Search, *, losses: dict[str, float], forced: bool) -> Circuit:
    trial, selection, config = search.trial, search.best, search.config
    references = trial.references
    channels = {
        site: tuple(kept.nonzero().flatten().tolist()) for site, kept in selection.nodes.items()
    }
    n_interface, n_biases = interface_counts(trial.model, channels)
    provenance = {
        "pruning": config.to_dict(),
        "answers": dict(getattr(trial.task, "answer_ids", {})),
        "references": dict(references.provenance),
        "versions": versions(),
        "stages": [{k: v for k, v in stage.items() if k != "seconds"} for stage in search.stages],
    }
    if coders_of(trial.model):
        provenance["saes"] = {str(s): coder.words for s, coder in coders_of(trial.model).items()}
    if search.calibration is not None:
        texts = {token: text for text, token in provenance["answers"].items()}
        shifts = {texts[token]: t for token, t in search.calibration.shifts.items()}
        provenance["calibration"] = {"scale": search.calibration.scale, "shifts": shifts}
    if search.interrupted:
        provenance["interrupted"] = True
    return Circuit(
        nodes=tuple(selection.node_list()),
        edges=tuple(sorted(selection.edge_list(trial.model), key=edge_order)),
        references={
            info.site: tuple(references.values[info.site].tolist())
            for info in ([] if references.resamples else trial.sites.sites)
        },
        task=trial.task.name,
        model_hash=references.model_hash,
        ablation=references.ablation,
        tie_qk=config.tie_qk,
        target_loss=config.target_loss,
        losses=losses,
        forced=forced,
        curve=tuple(search.curve),
        edge_curve=tuple(search.edge_curve),
        n_interface=n_interface,
        n_biases=n_biases,
        provenance=provenance,
    )
