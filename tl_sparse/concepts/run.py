"""Scoring all nodes of a model for all concepts, start to end.

1. Label the text, and deal its documents out to two halves (`labelling`).
2. Group by group, round the nodes' activations to levels (`activations`).
3. Chunk by chunk, count levels by concept on both halves (`counting`); choose each pair's threshold
   on the first and score it on the second (`scoring`).
4. The same with the labels of each half shifted against its tokens, all concepts together, by a
   random number of places: what best-of-so-many gives where there is nothing to find. Shifting
   keeps how long a concept lasts, which shuffling would not.
5. Sum up by concept and by node (`report`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.checkpoints import versions
from tl_sparse.concepts.activations import (
    Place,
    check_coders,
    coder_places,
    groups,
    site_places,
)
from tl_sparse.concepts.catalog import names
from tl_sparse.concepts.counting import chunks
from tl_sparse.concepts.labelling import LabelledTokens, label_tokens
from tl_sparse.concepts.report import ConceptReport, ConceptRow, node_name
from tl_sparse.concepts.scoring import (
    PairScores,
    best_rules,
    information,
    joined,
    rows_of,
    score_rules,
)
from tl_sparse.concepts.settings import ConceptConfig
from tl_sparse.data import Corpus
from tl_sparse.sites import model_hash


def score(
    model: HookedTransformer,
    source: Corpus | Iterable[Any],
    config: ConceptConfig | None = None,
    *,
    coders: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ConceptReport:
    """Score nodes for every concept: all sites of a model, or the latents of SAEs.

    Args:
        model: A HookedTransformer with a tokenizer. Its own nodes are those of `site_map`, which
            refuses some models, as those with attention and MLP in parallel or without norms;
            latents are scored in any.
        source: A corpus, whose validation side is read, or texts of Python.
        config: None is `ConceptConfig()`.
        coders: By hook point, what reads latents there: a function from the activation to latents,
            or an object with such an `encode`, as SAELens' SAEs. Given, these latents are scored in
            place of the model's nodes. The hook point has an activation for each token; one with
            heads is flattened first.
        progress: Show progress bars.

    Returns:
        The report; its `pairs` has every score of every concept and node.

    Raises:
        ValueError: If the model has no tokenizer, if fewer than two documents are Python that
            parses, if windows are shorter than what is left unscored, if `site_map` does not know
            the model, if coders can't read at their hook points, if no concept is frequent enough,
            or if an activation is NaN or infinite.
    """
    config, n_ctx = config or ConceptConfig(), model.cfg.n_ctx
    _check(model, config)
    if coders is None:
        places = site_places(model)
    else:
        check_coders(model, coders)
        places = coder_places(model, coders)
    stream = label_tokens(source, model.tokenizer, config.n_tokens, progress=progress)
    text = stream.cut(n_ctx, config.n_unscored)
    halves, labels, kept = _both_halves(text, config)
    found: list[PairScores] = []
    for group in groups(model, places, text, n_ctx, config, progress=progress):
        for nodes, chosen, held in chunks(group, halves, labels, config.n_levels):
            found.append(score_rules(held, best_rules(chosen), group.edges[nodes]))
    provenance = {
        "model": model_hash(model),
        "corpus": source.hash if isinstance(source, Corpus) else None,
        "config": asdict(config),
        "n_tokens": [len(half) for half in halves],
        "n_documents": text.n_documents,
        "n_documents_skipped": text.n_skipped,
        "versions": versions(),
    }
    return _report(joined(found), labels[1], kept, places, config.threshold, provenance)


def _check(model: HookedTransformer, config: ConceptConfig) -> None:
    """Refuse what can't work before any work."""
    if model.tokenizer is None:
        raise ValueError("Concepts are of text: the model needs a tokenizer. model.set_tokenizer.")
    if config.n_unscored >= model.cfg.n_ctx:
        raise ValueError(
            f"n_unscored is smaller than the model's windows of {model.cfg.n_ctx}, got "
            f"{config.n_unscored}. Nothing would be scored."
        )


def _both_halves(
    text: LabelledTokens, config: ConceptConfig
) -> tuple[tuple[Tensor, Tensor], tuple[np.ndarray, np.ndarray], list[str]]:
    """Give the tokens of each half among the scored ones, and labels of the frequent concepts.

    The columns of the labels are: the concepts, the same shifted, ones.
    """
    scored = text.half[text.half >= 0]
    held = text.labels[:, text.half >= 0]
    halves = ((scored == 0).nonzero()[:, 0], (scored == 1).nonzero()[:, 0])
    sums = [held[:, half].sum(1) for half in halves]
    rarer = [n.minimum(len(half) - n) for n, half in zip(sums, halves, strict=True)]
    frequent = torch.stack(rarer).amin(0)
    rows = (frequent >= config.min_positives).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(
            f"No concept holds, and fails, at {config.min_positives} tokens of each half of the "
            f"{len(scored):,} that are scored. Give more text, or lower min_positives."
        )
    generator = torch.Generator().manual_seed(config.seed)
    labels = tuple(_columns(held[rows][:, half], generator) for half in halves)
    return halves, (labels[0], labels[1]), [names()[int(row)] for row in rows]


def _columns(
    held: Bool[Tensor, "concept token"], generator: torch.Generator
) -> Float[np.ndarray, "token column"]:
    """Give labels, shifted labels and ones as columns; the shift is a quarter to three quarters."""
    n = held.shape[1]
    shift = n // 4 + int(torch.randint(max(1, n // 2), (), generator=generator))
    ones = torch.ones(1, n, dtype=torch.bool)
    columns = torch.cat([held, held.roll(shift, 1), ones])
    return np.ascontiguousarray(columns.T.float().numpy())


def _report(
    pairs: PairScores,
    labels: Float[np.ndarray, "token column"],
    kept: list[str],
    places: tuple[Place, ...],
    threshold: float,
    provenance: dict[str, Any],
) -> ConceptReport:
    """Sum up; the rows of `pairs` are the concepts and then the same shifted."""
    n = len(kept)
    widths = {place.name: place.width for place in places}
    real, chance = rows_of(pairs, slice(0, n)), rows_of(pairs, slice(n, 2 * n))
    own = own_shares(torch.from_numpy(labels[:, :n]))
    n_tracked = (real.gain >= threshold).sum(0)
    best = real.information.argmax(0)
    share = real.information.amax(0) / real.information.sum(0).clamp(min=1e-12)
    some = n_tracked > 0
    return ConceptReport(
        concepts=_rows(real, chance, labels, kept, widths, threshold, own),
        left_out=tuple(name for name in names() if name not in kept),
        places=widths,
        n_tracked=tuple(n_tracked.tolist()),
        n_tracked_by_chance=tuple((chance.gain >= threshold).sum(0).tolist()),
        best_concept=_where(some, [kept[i] for i in best.tolist()]),
        monosemanticity=_where(some, share.tolist()),
        purity=_where(some, (share / own[best]).tolist()),
        provenance=provenance,
        pairs=real,
        shifted=chance,
    )


def _rows(
    real: PairScores,
    chance: PairScores,
    labels: Float[np.ndarray, "token column"],
    kept: list[str],
    widths: dict[str, int],
    threshold: float,
    own: Float[Tensor, " concept"],
) -> tuple[ConceptRow, ...]:
    """Give each concept's best node, chosen by its F1 on the first half."""
    rows = []
    for i, name in enumerate(kept):
        best, lucky = int(real.chosen_f1[i].argmax()), int(chance.chosen_f1[i].argmax())
        n_positive = int(labels[:, i].sum())
        at_best = {
            key: float(getattr(real, key)[i, best])
            for key in ("threshold", "precision", "recall", "f1", "gain", "auroc")
        }
        rows.append(
            ConceptRow(
                concept=name,
                n_positive=n_positive,
                always_f1=2 * n_positive / (len(labels) + n_positive),
                node=node_name(widths, best),
                above=bool(real.above[i, best]),
                n_nodes=int((real.gain[i] >= threshold).sum()),
                chance_gain=float(chance.gain[i, lucky]),
                chance_f1=float(chance.f1[i, lucky]),
                own_share=float(own[i]),
                **at_best,
            )
        )
    return tuple(rows)


def own_shares(labels: Float[Tensor, "token concept"]) -> Float[Tensor, " concept"]:
    """Give each concept's information on itself, as a share of the sum of that on all concepts."""
    both = labels.T.double() @ labels.double()
    each = both.diagonal()
    n_tokens = torch.full_like(both, len(labels))
    found = information(both, each[:, None].expand_as(both), each.expand_as(both), n_tokens)
    return found.diagonal() / found.sum(1).clamp(min=1e-12)


def _where(some: Bool[Tensor, " node"], values: list[Any]) -> tuple[Any, ...]:
    return tuple(v if is_some else None for is_some, v in zip(some.tolist(), values, strict=True))
