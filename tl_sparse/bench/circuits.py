"""Mask learning, an audit and a compiled circuit, on a random model, task and circuit.

What they cost hangs on shapes and on the number of weights, not on what a model has learned: so a
model with random weights stands in for a trained one, pairs of random letters for a task, and a few
large weights, followed back from the writes of each sublayer, for a circuit.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.ablation import only_circuit
from tl_sparse.auditing import audit
from tl_sparse.bench.sizes import D_HEAD, Size
from tl_sparse.bench.timing import Candidate, Measurement, Run
from tl_sparse.bench.training import PLAIN, SPARSE, our_model, plain_model
from tl_sparse.circuit import Circuit, Site, edge_order
from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.pruning import task_references
from tl_sparse.pruning.learning import learn_edges, learn_nodes
from tl_sparse.pruning.prune import frozen_parameters
from tl_sparse.pruning.trial import Trial, evaluate
from tl_sparse.selection import Selection, select_nodes
from tl_sparse.sites import joint_matrix, site_map
from tl_sparse.tasks import Pair, PairTask, Split

PROMPT_LENGTH = 24
N_LETTERS = 26
N_STEPS = 4
"""Steps of mask learning in one call."""

N_WRITES, N_INTO = 1, 1
"""The made-up circuit: so many channels that each sublayer writes, and so many edges into each of
its nodes: 6 edges a layer, for the demo's circuits have 5 to 16 in two layers."""

CIRCUIT_DENSITIES = {name: s for name, s in SPARSE.items() if s.weight_density < 1} | {
    "density 1/8": SparsityConfig(
        weight_density=1 / 8, activation_density=1 / 4, bigram_table=True
    ),
}
"""Models that circuits are audited and compiled in; in a dense one nothing would be saved."""


class Letters:
    """A tokenizer with one token for each small letter."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Give each letter's number."""
        return [ord(letter) - ord("a") for letter in text]


def letters_task(size: Size) -> PairTask:
    """Make pairs of random words that differ in one letter, which decides between two answers."""
    rng, seen = random.Random(0), set()
    counts: dict[Split, int] = {
        "train": size.n_prompts // 2, "validation": size.n_test_pairs, "test": size.n_test_pairs
    }  # fmt: skip
    pairs: dict[Split, list[Pair]] = {split: [] for split in counts}
    for split, n in counts.items():
        while len(pairs[split]) < n:
            start = "".join(chr(ord("a") + rng.randrange(N_LETTERS)) for _ in range(PROMPT_LENGTH))
            if start[1:] not in seen:
                seen.add(start[1:])
                prompts = ("a" + start[1:], "b" + start[1:])
                pairs[split].append(Pair(prompts, ("a", "b")))
    return PairTask("letters", pairs, tokenizer=Letters())


def made_up_circuit(model: HookedSparseTransformer, task: PairTask) -> Circuit:
    """Follow the largest weights back from a few writes of each sublayer, and queries and keys."""
    sites = site_map(model)
    device = next(model.parameters()).device
    nodes: dict[Site, Tensor] = {
        info.site: torch.zeros(info.width, dtype=torch.bool, device=device) for info in sites.sites
    }
    fed = {joint.target: (joint_matrix(model, joint) != 0).any(0) for joint in sites.joints}
    edges = {}
    for joint in sorted(sites.joints, key=lambda j: j.target.order, reverse=True):
        size, target = joint_matrix(model, joint).detach().abs(), joint.target
        if joint.source in fed:  # a node that nothing feeds is in no circuit
            size = size * fed[joint.source][:, None]
        if target.name in ("attn_out", "mlp_out", "q", "k"):
            strength = size.amax(0)
            if target.name in ("q", "k"):  # of a head whose values the circuit has
                values = nodes[Site(target.layer, "v")].unflatten(0, (-1, D_HEAD))
                strength *= values.any(1).repeat_interleave(D_HEAD)
            nodes[target][strength.topk(N_WRITES).indices] = True
        largest = size.topk(N_INTO, dim=0).indices
        kept = torch.zeros_like(size, dtype=torch.bool).scatter_(0, largest, True)
        edges[joint] = kept & (size > 0) & nodes[target]
        nodes[joint.source] |= edges[joint].any(1)
    selection = Selection(nodes, edges).settled()
    references = task_references(model, task, progress=False)
    return Circuit(
        nodes=tuple(selection.node_list()),
        edges=tuple(sorted(selection.edge_list(model), key=edge_order)),
        references={i.site: tuple(references.values[i.site].tolist()) for i in sites.sites},
        task=task.name,
        model_hash=references.model_hash,
        ablation="task_mean",
        target_loss=1.0,
        provenance={"answers": task.answer_ids},
    )


# -- mask learning ----------------------------------------------------------------------------


@contextmanager
def _plain_gradients(size: Size, device: torch.device, task: PairTask) -> Iterator[Run]:
    model, n_pairs = plain_model(size, device), PruningConfig().batch_size
    batch = task.batch("train", range(min(n_pairs, task.n_examples("train")))).to(device)
    rows = torch.arange(len(batch.last), device=device)

    def run() -> None:
        for _ in range(N_STEPS):
            task.loss(model(batch.tokens)[rows, batch.last], batch).backward()
            model.zero_grad(set_to_none=True)

    yield run


@contextmanager
def _mask_learning(
    size: Size, device: torch.device, task: PairTask, sparsity: SparsityConfig, what: str
) -> Iterator[Run]:
    model = our_model(size, device, sparsity)
    references = task_references(model, task, progress=False)
    trial = Trial(model, task, site_map(model), references)
    config = PruningConfig(n_steps=N_STEPS, n_edge_steps=N_STEPS)
    every = {
        i.site: torch.ones(i.width, dtype=torch.bool, device=device) for i in trial.sites.sites
    }
    with frozen_parameters(model):
        if what == "nodes":
            yield lambda: learn_nodes(trial, config, progress=False)
        else:
            selection = select_nodes(every, trial.weights)
            yield lambda: learn_edges(trial, selection, config, progress=False)


def pruning(size: Size, device: torch.device) -> list[Measurement]:
    """Measure steps of mask learning, on all nodes and on all edges, 32 pairs in a step.

    Four steps in a call of `learn_nodes` or `learn_edges`, per step: the fresh masks that a call
    begins with are in it. The baseline is forward and backward of the plain model on as many pairs.
    """
    task = letters_task(size)
    plain = partial(_plain_gradients, size, device, task)
    candidates = [Candidate(f"{PLAIN}, forward and backward", plain, N_STEPS)]
    for what in ("nodes", "edges"):
        for name, sparsity in SPARSE.items():
            learn = partial(_mask_learning, size, device, task, sparsity, what)
            candidates.append(Candidate(f"masks on {what}, {name}", learn, N_STEPS))
    case = "a step, 32 pairs"
    return [Measurement(kind="pruning", size=size.name, case=case, candidates=tuple(candidates))]


# -- audits -----------------------------------------------------------------------------------


@contextmanager
def evaluation(model: HookedTransformer, task: PairTask, split: Split = "test") -> Iterator[Run]:
    """Give one run of a model over all pairs of a split."""
    yield lambda: evaluate(model, task, split)


@contextmanager
def _audit(model: HookedSparseTransformer, task: PairTask) -> Iterator[Run]:
    circuit, config = made_up_circuit(model, task), AuditConfig.quick()
    yield lambda: audit(model, circuit, task, config=config, progress=False)


def auditing(size: Size, device: torch.device) -> list[Measurement]:
    """Measure a quick audit, three times at most, against one run over the test pairs."""
    task, found = letters_task(size), []
    for name, sparsity in CIRCUIT_DENSITIES.items():
        candidates = (
            Candidate("model on the test pairs", partial(_built, size, device, sparsity, task)),
            Candidate("quick audit", partial(_built, size, device, sparsity, task, audited=True)),
        )
        found.append(
            Measurement(
                kind="audit", size=size.name, case=name, candidates=candidates, max_rounds=3
            )
        )
    return found


@contextmanager
def _built(
    size: Size,
    device: torch.device,
    sparsity: SparsityConfig,
    task: PairTask,
    *,
    audited: bool = False,
) -> Iterator[Run]:
    model = our_model(size, device, sparsity)
    with (_audit if audited else evaluation)(model, task) as run:
        yield run


# -- compiled circuits ------------------------------------------------------------------------


MODEL, ALONE, COMPILED = "model", "model, circuit alone", "compiled circuit"
"""The ways to the answers that are compared."""


@contextmanager
def _answers(
    build: Callable[[torch.device], HookedSparseTransformer],
    circuit_of: Callable[[HookedSparseTransformer], Circuit],
    task: PairTask,
    device: torch.device,
    pairs: Sequence[int] | None,
    way: str,
) -> Iterator[Run]:
    """Give the answer logits of a batch of prompts: of the model, of its circuit, compiled."""
    model = build(torch.device("cpu"))
    circuit, batch = circuit_of(model), task.batch("train", pairs).to(device)
    if way == COMPILED:
        # Few large weights of a random model feed more rivals than those of a trained one.
        compiled = circuit.compile(model, max_rivals=1.0).to(device)
        yield torch.no_grad()(lambda: compiled(batch.tokens, batch.last))
        return
    model = build(device)
    alone = only_circuit(model, circuit) if way == ALONE else nullcontext()
    with model.using_attention("auto"), alone:
        yield torch.no_grad()(lambda: task.logits(model, batch))


def answer_candidates(
    build: Callable[[torch.device], HookedSparseTransformer],
    circuit_of: Callable[[HookedSparseTransformer], Circuit],
    task: PairTask,
    device: torch.device,
    pairs: Sequence[int] | None = None,
) -> tuple[Candidate, ...]:
    """Give three ways to the answers to all training prompts, or to those of some pairs.

    `build` gives the same model whenever it is called. Of the models only the logits at the last
    position are computed.
    """
    prepare = partial(_answers, build, circuit_of, task, device, pairs)
    return tuple(Candidate(way, partial(prepare, way)) for way in (MODEL, ALONE, COMPILED))


def compiled(size: Size, device: torch.device) -> list[Measurement]:
    """Measure the answers to 1,024 prompts by the model, with the circuit alone, and compiled."""
    task, found = letters_task(size), []
    for name, sparsity in CIRCUIT_DENSITIES.items():
        # The weights are the same on each device: the seed is the shape's.
        build = partial(our_model, size, sparsity=sparsity)
        candidates = answer_candidates(build, partial(made_up_circuit, task=task), task, device)
        found.append(Measurement(kind="compiled", size=size.name, case=name, candidates=candidates))
    return found
