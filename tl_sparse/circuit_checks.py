"""Does a circuit fit a model? Asked before it is run, explained, exported or compiled.

A circuit's file names the model that it was found in by a hash. That alone keeps circuits and
models together; the rest is about files that a program or a person has changed: nodes, references
and edges have to be the model's.
"""

import re
from collections import defaultdict

import torch
from transformer_lens import HookedTransformer

from tl_sparse.circuit import Circuit, Edge, Site
from tl_sparse.sites import SiteMap, coders_of, joint_matrix, model_hash, site_map


def check_question(circuit: Circuit, task: str) -> None:
    """Check that something can be asked of a circuit on a task: it is its own, and it has a node.

    Raises:
        ValueError: If the circuit was found on another task, or the last token alone does it.
    """
    if circuit.task != task:
        advice = "Give the task that it was found on."
        if task in re.split(r" [&|-] ", circuit.task):
            advice = (
                "It is made of circuits of several tasks. To ask it about this one, say so: "
                f"dataclasses.replace(circuit, task={task!r})."
            )
        raise ValueError(
            f"The circuit was found on the task {circuit.task!r}, and the task given is {task!r}. "
            f"{advice}"
        )
    if not circuit.nodes:
        raise ValueError(
            f"The circuit for {circuit.task} has no node: the last token alone does the task, and "
            "there is nothing to look into."
        )


def check_circuit(
    circuit: Circuit,
    model: HookedTransformer,
    *,
    resampling: bool = False,
    latents: bool = False,
    bundles: bool = False,
) -> None:
    """Check that a circuit fits a model: the same weights, its sites, its nodes, its edges.

    `resampling` lets circuits pass whose other nodes take values of another prompt, `latents`
    models with SAEs spliced in, whose nodes are no channels, `bundles` models in which an edge can
    be several weights.

    Raises:
        ValueError: If the circuit was found in another model or its weights have changed since, if
            it has nodes or references that the model lacks, or an edge that is no weight of it.
    """
    if coders_of(model) and not latents:
        raise ValueError(
            f"The circuit {circuit.task} is one of SAE latents, and this reads nodes as channels "
            "of the model and edges as its weights. Run it (only_circuit) or audit it."
        )
    if circuit.model_hash != model_hash(model):
        raise ValueError(
            f"The circuit {circuit.task} was found in another model, or the weights have changed. "
            "Use it with the model that it was found in."
        )
    sites = site_map(model, final=True)
    if not bundles and any(joint.n_weights > 1 for joint in sites.joints):
        raise ValueError(
            f"The circuit {circuit.task} is of a model with a gated MLP or grouped queries, where "
            "an edge can be several weights, and this reads each edge as one. Run it "
            "(only_circuit) or audit it."
        )
    if not circuit.resamples:
        _check_references(circuit, sites)
    elif not resampling:
        raise ValueError(
            f"The circuit {circuit.task} was found under {circuit.ablation!r}: what is out takes "
            "its value on another prompt, and this needs constants. Prune with references of "
            "means or zeros, or run it: only_circuit(model, circuit, other=tokens)."
        )
    _check_edges(circuit, model, sites)


def _check_references(circuit: Circuit, sites: SiteMap) -> None:
    """Check that there is one reference value for each node of the model and for no other."""
    final = any(node.site.name == "final_in" for node in circuit.nodes)
    for info in sites.sites:
        n_given = len(circuit.references.get(info.site, ()))
        if n_given == info.n_entries or (
            info.site.name == "final_in" and not n_given and not final
        ):
            continue
        what = "entries" if info.n_error else "nodes"
        raise ValueError(
            f"The circuit {circuit.task} has {n_given} reference values for {info.site}, where the "
            f"model has {info.n_entries} {what}. The file was changed after it was written."
        )
    unknown = [site for site in circuit.references if site not in sites]
    if unknown:
        raise ValueError(
            f"The circuit {circuit.task} has nodes at {unknown[0]}, and the model is without that "
            "site. The file was changed after it was written."
        )


def _check_edges(circuit: Circuit, model: HookedTransformer, sites: SiteMap) -> None:
    """Check that each edge is a weight of the model, to the rounding of the model's type."""
    by_ends = {(joint.source, joint.target): joint for joint in sites.joints}
    of_joint: dict[tuple[Site, Site], list[Edge]] = defaultdict(list)
    coders = set(coders_of(model))
    for edge in circuit.edges:
        of_joint[edge.source.site, edge.target.site].append(edge)
    for ends, edges in of_joint.items():
        has = f"The circuit {circuit.task} has the edge {edges[0]}"
        if ends not in by_ends:
            raise ValueError(f"{has}; no weight of the model leads from {ends[0]} to {ends[1]}.")
        matrix = joint_matrix(model, by_ends[ends]).cpu()
        channels = torch.tensor([(e.source.channel, e.target.channel) for e in edges])
        weights = matrix[channels[:, 0], channels[:, 1]].tolist()
        tolerance, least = 2 * torch.finfo(matrix.dtype).eps, 0.0
        if coders & set(ends):  # a product of matrices, made anew, is the same to rounding only
            least = 1000 * tolerance * float(matrix.abs().max())
        if by_ends[ends].n_weights > 1:  # a norm, which another type rounds otherwise
            tolerance = max(tolerance, 4 * torch.finfo(torch.float32).eps)
        for edge, weight in zip(edges, weights, strict=True):
            has = f"The circuit {circuit.task} has the edge {edge}"
            if weight == 0:
                raise ValueError(
                    f"{has}; in the model this weight is zero, and edges are weights that are not."
                )
            if not abs(edge.weight - weight) <= max(tolerance * abs(weight), least):
                raise ValueError(
                    f"{has}; in the model this weight is {weight:+.6g}. The file was changed after "
                    "it was written."
                )
