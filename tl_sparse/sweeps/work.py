"""What cells do: train and measure a model, or SAEs of it; find and audit a circuit; score text.

Everything is kept at the place where it can be found again: checkpoints, references, circuits.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import References, references
from tl_sparse.auditing import audit
from tl_sparse.capability import CapabilityRow, NGramModel, capability_row
from tl_sparse.checkpoints import read_json, read_tensors, write_tensors
from tl_sparse.circuit import Circuit, Site
from tl_sparse.concepts import ConceptConfig, ConceptReport
from tl_sparse.concepts import score as score_concepts
from tl_sparse.data import Corpus
from tl_sparse.files import write_text
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.presets import demo_shape
from tl_sparse.pruning import TaskGateError, UnreachableTargetError, prune
from tl_sparse.sae_arm import (
    SplicedTransformer,
    edges_of_errors,
    load_saes,
    score_saes,
    splice,
    train_saes,
)
from tl_sparse.sites import model_hash, site_map
from tl_sparse.sweeps.cells import (
    BitsCell,
    Cell,
    CircuitCell,
    ConceptCell,
    ModelCell,
    NGramCell,
    SAECell,
)
from tl_sparse.sweeps.store import HASHES, Store
from tl_sparse.tasks import Task, get
from tl_sparse.training import DivergedError, train

N_KURTOSIS_WINDOWS = 32
"""Validation windows over which the kurtosis is measured."""

GAINS = (0.1, 0.2, 0.3, 0.5)
"""Gains from which on a node counts as tracking a concept."""

CONCEPT_FIELDS = ("concept", "node", "precision", "recall", "f1", "gain", "always_f1", "chance_f1")
"""What is kept of each concept's best node."""


class OtherWeightsError(RuntimeError):
    """A model or SAEs came out with other weights than those that finished cells are made from."""


def do(cell: Cell, store: Store, *, progress: bool = True) -> dict[str, Any]:
    """Do a cell whose needs are done, and give its result; the store keeps it.

    Raises:
        ValueError: If the text on this machine is not the cell's.
        OtherWeightsError: If the cell is a lost model or set of SAEs that came out with other
            weights here, and there are finished cells of the old ones; or if it needs such a one.
            Nothing is overwritten.
        OSError: If the disk is full.
    """
    began = time.perf_counter()
    if isinstance(cell, ModelCell):
        result = train_model(cell, store, progress=progress)
    elif isinstance(cell, SAECell):
        result = train_cell_saes(cell, store, progress=progress)
    elif isinstance(cell, ConceptCell):
        result = find_concepts(cell, store, progress=progress)
    elif isinstance(cell, BitsCell):
        result = score_model(cell, store, progress=progress)
    elif isinstance(cell, NGramCell):
        result = score_ngrams(cell, store, progress=progress)
    else:
        assert isinstance(cell, CircuitCell)
        result = find_circuit(cell, store, progress=progress)
    if isinstance(cell, ModelCell | SAECell) and store.n_made_from(cell):
        _check_weights(cell, result, store)
    store.keep(cell, result, seconds=time.perf_counter() - began)
    return result


def _check_weights(cell: ModelCell | SAECell, found: Mapping[str, Any], store: Store) -> None:
    """Refuse weights that are not those of a finished cell."""
    kept = store.result(cell) or {}
    if any(kept[name] != found[name] for name in HASHES if name in kept and name in found):
        raise OtherWeightsError(
            "A finished cell keeps its weights while other cells are made from them, and "
            f"'{cell.label}' gave others here: another kind of processor, or other versions. "
            f"Nothing was overwritten. Go on in a new folder; or remove {store.file(cell)}, and "
            f"what is made from it is done anew (finished cells: {store.n_made_from(cell)})."
        )


def _made_from(cell: Cell, store: Store) -> dict[str, Any]:
    """Give the hashes of what a cell is made from, and whether its model diverged."""
    found: dict[str, Any] = {}
    for needed in cell.needs:
        given = store.result(needed)
        assert given is not None
        found |= {name: given[name] for name in (*HASHES, "diverged") if name in given}
    return found


def train_model(cell: ModelCell, store: Store, *, progress: bool) -> dict[str, Any]:
    """Train a cell's model, or go on with it, and measure it."""
    corpus = cell.text.open(store.text_folder, progress=progress)
    shape = demo_shape(corpus.d_vocab, width=cell.width, seed=cell.training.seed)
    shape |= {"n_layers": cell.n_layers, "n_ctx": cell.n_ctx, "device": cell.device}
    model = HookedSparseTransformer(shape, tokenizer=corpus.tokenizer, sparsity=cell.sparsity)
    try:
        history = train(model, corpus, cell.training, folder=store.place(cell), progress=progress)
    except DivergedError:
        return {"model_hash": "", "diverged": True}
    summary = model.summary()
    return {
        "model_hash": model_hash(model),
        "validation_loss": history.validation_loss,
        "n_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "n_nonzero": int(sum(int((p != 0).sum()) for p in model.parameters() if p.requires_grad)),
        "n_nonzero_blocks": block_nonzeros(model),
        "dead_neurons": list(summary.n_dead_neurons),
        "kurtosis": final_kurtosis(model, corpus),
    }


def open_model(cell: ModelCell, store: Store) -> HookedSparseTransformer:
    """Open a trained model on the cell's device, or on the CPU where there is no GPU.

    Raises:
        OtherWeightsError: If it has other weights than the finished cell says.
    """
    device = cell.device if torch.cuda.is_available() else "cpu"
    model = HookedSparseTransformer.load(store.model_folder(cell), device=device)
    _check_weights(cell, {"model_hash": model_hash(model)}, store)
    return model


def open_saes(cell: SAECell, model: HookedSparseTransformer, store: Store) -> dict[Site, Any]:
    """Open a cell's SAEs.

    Raises:
        OtherWeightsError: If they have other weights than the finished cell says.
    """
    saes = load_saes(store.saes_folder(cell))
    _check_weights(cell, {"saes_hash": model_hash(splice(model, saes))}, store)
    return saes


def block_nonzeros(model: HookedTransformer) -> int:
    """Count the nonzero entries of the blocks' weight matrices, the edges of the whole model."""
    return sum(
        int((p != 0).sum())
        for n, p in model.named_parameters()
        if n.startswith("blocks.") and "W_" in n
    )


@torch.no_grad()
def final_kurtosis(model: HookedTransformer, corpus: Corpus) -> float:
    """Give the mean log kurtosis of the final residual stream's channels at a token.

    Fourth moment over squared second, over the channels of one token, about their mean; then the
    mean of its logarithm over tokens (Gao et al. 2025, Fig. 10, which does not say over what).
    """
    n_windows = min(N_KURTOSIS_WINDOWS, corpus.validation.windows_per_epoch(model.cfg.n_ctx))
    windows = corpus.validation.windows(n_ctx=model.cfg.n_ctx, n_windows=n_windows)
    name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    _, cache = model.run_with_cache(windows.to(model.cfg.device), names_filter=name)
    return float(log_kurtosis(cache[name].flatten(0, 1).double()).mean())


def log_kurtosis(x: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
    """Give the log of the kurtosis of each row; log 3 for normal channels."""
    centred = x - x.mean(-1, keepdim=True)
    return ((centred**4).mean(-1) / (centred**2).mean(-1) ** 2).log()


def train_cell_saes(cell: SAECell, store: Store, *, progress: bool) -> dict[str, Any]:
    """Train a cell's SAEs, or go on with them, and score them on validation text."""
    found = _made_from(cell, store) | {"saes_hash": ""}
    if found.get("diverged"):
        return found
    model = open_model(cell.model, store)
    corpus = cell.model.text.open(store.text_folder, progress=progress)
    saes = train_saes(model, corpus, store.saes_folder(cell), cell.settings, progress=progress)
    n_ctx = cell.model.n_ctx
    n_windows = min(cell.n_eval_windows, corpus.validation.windows_per_epoch(n_ctx))
    windows = corpus.validation.windows(n_ctx=n_ctx, n_windows=n_windows)
    scores = score_saes(model, saes, windows, progress=progress)
    return found | {"saes_hash": model_hash(splice(model, saes)), "scores": scores.to_dict()}


def find_concepts(cell: ConceptCell, store: Store, *, progress: bool) -> dict[str, Any]:
    """Score the nodes of a cell's model, or the latents of its SAEs, for concepts."""
    found = _made_from(cell, store)
    if found.get("diverged"):
        return found
    model = open_model(cell.model, store)
    coders = None
    if cell.saes is not None:
        hooks = {info.site: info.hook_name for info in site_map(model).sites}
        saes = open_saes(cell.saes, model, store)
        coders = {hooks[site]: sae for site, sae in saes.items()}
    corpus = cell.model.text.open(store.text_folder, progress=progress)
    config = ConceptConfig(n_tokens=cell.n_tokens)
    report = score_concepts(model, corpus, config, coders=coders, progress=progress)
    rows = [{name: row[name] for name in CONCEPT_FIELDS} for row in report.to_dict()["concepts"]]
    tracked = {f"{gain:g}": _tracked(report, gain) for gain in GAINS}
    return found | {"summary": report.summary(), "tracked": tracked, "concepts": rows}


def _tracked(report: ConceptReport, gain: float) -> dict[str, Any]:
    """Say how many nodes have at least some gain for a concept, and for how many concepts each."""
    counts = report.tracked_at(gain)
    lucky = report.tracked_at(gain, by_chance=True)
    return {
        "at least": [share for _, share in report.at_least(gain)],
        "nodes": sum(n > 0 for n in counts),
        "by chance": sum(n > 0 for n in lucky),
        "concepts": sum(counts),
    }


def score_model(cell: BitsCell, store: Store, *, progress: bool) -> dict[str, Any]:
    """Measure how well a cell's model predicts the validation text, and its cost of training."""
    found = _made_from(cell, store)
    if found.get("diverged"):
        return found
    model = open_model(cell.model, store)
    corpus = cell.model.text.open(store.text_folder, progress=progress)
    training = cell.model.training
    return found | _scores(capability_row("", model, corpus, training=training, progress=progress))


def score_ngrams(cell: NGramCell, store: Store, *, progress: bool) -> dict[str, Any]:
    """Count n-grams on the training text and measure how well they predict the validation text."""
    corpus = cell.text.open(store.text_folder, progress=progress)
    model = NGramModel.fit(corpus.train, corpus.d_vocab, order=cell.order, progress=progress)
    scores = _scores(capability_row("", model, corpus, n_ctx=cell.n_ctx, progress=progress))
    return scores | {"n_tokens_counted": corpus.train.n_tokens}


def _scores(row: CapabilityRow) -> dict[str, Any]:
    return {name: value for name, value in row.to_dict().items() if name != "name"}


# -- circuits ---------------------------------------------------------------------------------


def find_circuit(cell: CircuitCell, store: Store, *, progress: bool) -> dict[str, Any]:
    """Prune a cell's task on its model, with its SAEs if it has any, and audit the circuit."""
    found = _made_from(cell, store) | {"note": ""}
    if found.pop("diverged", False):
        return found | {"note": "the model diverged"}
    model = _model_of(cell, store)
    corpus = cell.model.text.open(store.text_folder, progress=progress)
    try:
        task = get(cell.task, tokenizer=model.tokenizer)
    except ValueError as error:
        return found | {"note": f"this tokenizer can't have it: {error}"}
    refs = _references(cell, store, model, corpus, progress=progress)
    try:
        circuit = _circuit(cell, store, model, task, refs, progress=progress)
    except TaskGateError as error:
        return found | {"note": "can't do the task", "losses": error.losses}
    except UnreachableTargetError as error:
        losses = error.losses | {"best": error.best_loss}
        return found | {"note": "no circuit reaches the target", "losses": losses}
    found |= {"losses": circuit.losses, "stages": circuit.provenance["stages"]}
    found |= {"n_nodes": circuit.n_nodes, "n_edges": circuit.n_edges}
    found |= {"n_interface": circuit.n_interface, "n_biases": circuit.n_biases}
    found |= count_kinds(circuit, model)
    return found | _audited(cell, store, model, circuit, task, corpus, progress=progress)


def _circuit(
    cell: CircuitCell,
    store: Store,
    model: HookedSparseTransformer,
    task: Task,
    refs: References,
    *,
    progress: bool,
) -> Circuit:
    """Prune, or open what a worker found that was stopped in the audit."""
    place = store.place(cell.model) / "circuits" / f"{cell.key}.json"
    if place.is_file() and (found := Circuit.load(place)).model_hash == refs.model_hash:
        return found
    circuit = prune(model, task, refs, cell.pruning, progress=progress)
    circuit.save(place)
    return circuit


def _model_of(cell: CircuitCell, store: Store) -> HookedSparseTransformer:
    """Open a cell's model, and splice in its SAEs if it has any."""
    model = open_model(cell.model, store)
    return model if cell.saes is None else splice(model, open_saes(cell.saes, model, store))


def count_kinds(circuit: Circuit, model: HookedSparseTransformer) -> dict[str, int]:
    """Count a circuit's latents, errors and channels, and the edges at errors; {} without SAEs."""
    if not isinstance(model, SplicedTransformer):
        return {}
    ends = {site: coder.n_latents for site, coder in model.coders.items()}
    coded = [node for node in circuit.nodes if node.site in ends]
    n_errors = sum(node.channel == ends[node.site] for node in coded)
    return {
        "n_latents": len(coded) - n_errors,
        "n_errors": n_errors,
        "n_channels": circuit.n_nodes - len(coded),
        "n_edges_of_errors": len(edges_of_errors(circuit, model)),
    }


def _audited(
    cell: CircuitCell,
    store: Store,
    model: HookedSparseTransformer,
    circuit: Circuit,
    task: Task,
    corpus: Corpus,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Give the audit's verdicts and the harm of taking the circuit out."""
    if cell.audit is None or not circuit.nodes:
        return {}
    report = audit(model, circuit, task, corpus, cell.audit, progress=progress)
    report.save(store.place(cell.model) / "audits" / f"{cell.key}.json")
    harm = {f.name.split()[-2]: f.value for f in report.findings if f.name.startswith("harm of")}
    return {"verdicts": report.verdicts(), "harm": harm}


def _references(
    cell: CircuitCell,
    store: Store,
    model: HookedSparseTransformer,
    corpus: Corpus,
    *,
    progress: bool,
) -> References:
    """Measure the means of a model's nodes, or open those that another cell measured.

    Workers may do so at once. What they write is the same, so the name is of the weights, and each
    file is replaced whole.
    """
    of = "" if cell.saes is None else f"-{cell.saes.key}"
    weights = model_hash(model)
    name = f"references-{cell.n_reference_tokens}{of}-{weights[:16]}"
    values = store.place(cell.model) / f"{name}.safetensors"
    about = store.place(cell.model) / f"{name}.json"
    if about.is_file():
        tensors = {Site.parse(site): tensor for site, tensor in read_tensors(values).items()}
        return References(tensors, "corpus_mean", weights, read_json(about))
    refs = references(model, corpus, cell.n_reference_tokens, progress=progress)
    write_tensors(values, {str(site): tensor for site, tensor in refs.values.items()})
    write_text(about, json.dumps(dict(refs.provenance)))
    return refs
