"""Run the demo: stages that leave their results in a folder, and open those that are there."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tl_sparse import data, tasks
from tl_sparse.ablation import References, references
from tl_sparse.auditing import AuditReport, audit
from tl_sparse.checkpoints import read_json
from tl_sparse.circuit import Circuit
from tl_sparse.config import AuditConfig, PruningConfig, SparsityConfig, TrainingConfig
from tl_sparse.control import match_width, matched_width_preset
from tl_sparse.demo.arms import ArmResult, ArmSpec, closing_lines
from tl_sparse.demo.pages import write_results, write_viewer_page
from tl_sparse.files import write_text
from tl_sparse.history import History
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.presets import (
    DEMO_PRUNING,
    DEMO_SPARSITY,
    DEMO_TRAINING,
    DEMO_VOCABULARY,
    DEMO_WIDTH,
    DENSE_SPARSITY,
    DENSE_TRAINING,
    QUICK_AUDIT,
    QUICK_DENSE_TRAINING,
    QUICK_PRUNING,
    QUICK_SPARSITY,
    QUICK_TRAINING,
    QUICK_WIDTH,
    demo_shape,
)
from tl_sparse.pruning import TaskGateError, UnreachableTargetError, prune
from tl_sparse.sites import model_hash
from tl_sparse.tasks import PairTask
from tl_sparse.training import train

TASK = "single_double_quote"

SMOKE = (
    "A smoke run, to see that the program works, and no result. The models saw so little text that "
    "they can hardly do the task; a circuit may be empty, and then there is nothing to audit. "
    "The demo is the same command without --quick."
)
"""What a quick run says of itself."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo trains and prunes; the defaults are the demo."""

    seed: int = 0
    """Seed of the models, of the order of the data and of the pruning."""
    full: bool = False
    """Add the dense control whose width was chosen to match the sparse model's loss."""
    n_characters: int = 24_000_000
    """Characters of text, half of them generated."""
    width: int = DEMO_WIDTH
    """d_model of the sparse model and of the dense one of equal width."""
    matched_width: int | None = None
    """Width of the matched control; None takes the preset if it was found on this corpus, and else
    searches for it (some five more trainings)."""
    sparsity: SparsityConfig = DEMO_SPARSITY
    sparse_training: TrainingConfig = DEMO_TRAINING
    dense_training: TrainingConfig = DENSE_TRAINING
    pruning: PruningConfig = DEMO_PRUNING
    n_reference_tokens: int = 2**18
    """Tokens over which the nodes' means are measured."""
    audit: AuditConfig | None = field(default_factory=AuditConfig.quick)
    """How much work the audits of the circuits do; None leaves them out."""
    max_viewed_edges: int = 500
    """Circuits of more edges are not in the viewer's page, circuit.html; 0 makes no such page."""
    note: str = ""
    """What the page says first, and the closing lines last: what a reader must know of this run."""

    @classmethod
    def quick(cls, *, seed: int = 0) -> "DemoSettings":
        """Give a smoke run: every stage on tiny models, in about a minute, and no result."""
        return cls(
            seed=seed,
            n_characters=1_200_000,
            width=QUICK_WIDTH,
            sparsity=QUICK_SPARSITY,
            sparse_training=QUICK_TRAINING,
            dense_training=QUICK_DENSE_TRAINING,
            pruning=QUICK_PRUNING,
            n_reference_tokens=2**14,
            audit=QUICK_AUDIT,
            note=SMOKE,
        )


def arm_specs(settings: DemoSettings) -> tuple[ArmSpec, ArmSpec]:
    """Give the sparse model and the dense one of equal width."""
    sparse = replace(settings.sparse_training, seed=settings.seed)
    return (
        ArmSpec("sparse", "sparse", settings.width, settings.sparsity, sparse),
        replace(dense_arm(settings, settings.width), name="dense", title="dense, equal width"),
    )


def dense_arm(settings: DemoSettings, width: int) -> ArmSpec:
    """Give a dense control of some width."""
    training = replace(settings.dense_training, seed=settings.seed)
    return ArmSpec(
        f"width{width}", f"dense, equal loss (width {width})", width, DENSE_SPARSITY, training
    )


def run_demo(
    folder: str | Path,
    settings: DemoSettings | None = None,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> list[ArmResult]:
    """Run the demo in a folder, going on from whatever stages it holds, and give the arms.

    `say` is given a line for the start and end of each stage and the table at the end.

    Raises:
        ValueError: If the folder holds a demo with other settings.
    """
    settings, folder = settings or DemoSettings(), Path(folder)
    _check_folder(folder, settings)
    clock = _Clock(folder, say)
    with clock.stage("read the text"):
        corpus = data.python_corpus(
            n_characters=settings.n_characters,
            vocab_size=DEMO_VOCABULARY,
            cache_dir=folder / "corpus",
            progress=progress,
        )
    task = tasks.get(TASK, tokenizer=corpus.tokenizer)
    results = []
    for spec in arm_specs(settings):
        with clock.stage(f"train {spec.title}"):
            model, history = train_arm(spec, corpus, folder / spec.name, progress=progress)
        results.append(ArmResult(spec, model, history))
    if settings.full:
        with clock.stage("train the dense control of equal loss"):
            spec = _matched_arm(settings, corpus, folder, results[0].history, progress)
            results.append(
                ArmResult(spec, *train_arm(spec, corpus, folder / spec.name, progress=progress))
            )
    for result in results:
        with clock.stage(f"prune {result.spec.title}"):
            place = folder / result.spec.name
            _prune_arm(result, task, corpus, settings, settings.pruning, place, progress)
    target = _common_target(results, settings.pruning.target_loss)
    for result in results if target > settings.pruning.target_loss else ():
        with clock.stage(f"prune {result.spec.title} at {target:g}"):
            place, easier = folder / result.spec.name, replace(settings.pruning, target_loss=target)
            _prune_arm(result, task, corpus, settings, easier, place, progress)
    for result in results if settings.audit else ():
        if result.circuit is not None and result.circuit.nodes:
            with clock.stage(f"audit {result.spec.title}"):
                place = folder / result.spec.name
                _audit_arm(result, result.circuit, task, corpus, settings, place, progress)
    with clock.stage("draw the circuits to click through"):
        viewed = write_viewer_page(
            folder, results, task, corpus, max_edges=settings.max_viewed_edges, progress=progress
        )
    with clock.stage("draw the page"):
        write_results(folder, results, seed=settings.seed, note=settings.note, task=task,
                      corpus=corpus, viewed=viewed)  # fmt: skip
    for line in (*closing_lines(folder, results, task), *filter(None, [settings.note])):
        say(line)
    return results


def _check_folder(folder: Path, settings: DemoSettings) -> None:
    """Refuse a folder with a demo of other models before any work is done."""
    names = ("seed", "n_characters", "width", "sparsity", "sparse_training", "dense_training")
    mine = {name: asdict(settings)[name] for name in names}
    mine = json.loads(json.dumps(mine))
    kept = folder / "settings.json"
    if not kept.is_file():
        write_text(kept, json.dumps(mine, indent=1))
        return
    theirs = read_json(kept)
    changed = [name for name in names if theirs.get(name) != mine[name]]
    if changed:
        raise ValueError(
            f"{folder} holds a demo with another {', '.join(changed)}. Give another --folder, or "
            "remove this one to start anew."
        )


def train_arm(
    spec: ArmSpec, corpus: data.Corpus, folder: Path, *, progress: bool = True
) -> tuple[HookedSparseTransformer, History]:
    """Train one arm in its folder, or go on, or open it if it is done."""
    model = HookedSparseTransformer(
        demo_shape(corpus.d_vocab, width=spec.width, seed=spec.training.seed),
        tokenizer=corpus.tokenizer,
        sparsity=spec.sparsity,
    )
    history = train(model, corpus, spec.training, folder=folder, progress=progress)
    return model, history


def _matched_arm(
    settings: DemoSettings,
    corpus: data.Corpus,
    folder: Path,
    sparse: History,
    progress: bool,
) -> ArmSpec:
    """Give the dense control of equal loss: its width is asked for, known, or searched."""
    width = settings.matched_width or matched_width_preset(corpus.hash)
    if width is None:

        def loss_at(width: int, i: int) -> float:
            spec = dense_arm(settings, width)
            _, history = train_arm(spec, corpus, folder / spec.name, progress=progress)
            return history.validation_loss

        start = max(2, settings.width * 3 // 8)
        width = match_width(loss_at, [sparse.validation_loss], start=start).width
    return dense_arm(settings, width)


def _prune_arm(
    result: ArmResult,
    task: PairTask,
    corpus: data.Corpus,
    settings: DemoSettings,
    config: PruningConfig,
    folder: Path,
    progress: bool,
) -> None:
    """Find an arm's circuit, or open the one that was found with the same settings."""
    config = replace(config, seed=settings.seed)
    kept = folder / f"circuit-{config.target_loss:g}.json"
    asked = {"pruning": config.to_dict(), "n_tokens": settings.n_reference_tokens}
    asked = json.loads(json.dumps(asked | {"model": model_hash(result.model), "task": task.name}))
    if kept.is_file() and read_json(kept).get("asked") == asked:
        outcome = read_json(kept)
    else:
        refs = references(result.model, corpus, settings.n_reference_tokens, progress=progress)
        outcome = _try_to_prune(result.model, task, refs, config, progress) | {"asked": asked}
        write_text(kept, json.dumps(outcome))
    if outcome.get("circuit"):
        result.circuit = Circuit.from_json(outcome["circuit"])
        result.losses = dict(result.circuit.losses)
    else:
        result.circuit, result.losses = None, outcome["losses"]
    result.note = outcome["note"]


def _try_to_prune(
    model: HookedSparseTransformer,
    task: PairTask,
    refs: References,
    config: PruningConfig,
    progress: bool,
) -> dict[str, Any]:
    try:
        circuit = prune(model, task, refs, config, progress=progress)
    except TaskGateError as error:
        return {"note": "cannot do the task", "losses": error.losses}
    except UnreachableTargetError as error:
        note = f"no circuit reaches {config.target_loss:g}; lowest {error.best_loss:.3f}"
        return {"note": note, "losses": error.losses | {"best": error.best_loss}}
    return {"note": "", "circuit": circuit.to_json()}


def _audit_arm(
    result: ArmResult,
    circuit: Circuit,
    task: PairTask,
    corpus: data.Corpus,
    settings: DemoSettings,
    folder: Path,
    progress: bool,
) -> None:
    """Audit an arm's circuit, or open the audit that was made of it with the same settings."""
    assert settings.audit is not None
    config, kept = replace(settings.audit, seed=settings.seed), folder / "audit.json"
    asked = {
        "audit": config.to_dict(),
        "model": model_hash(result.model),
        "circuit": hashlib.sha256(circuit.to_json().encode()).hexdigest(),
        "corpus": corpus.hash,
    }
    if kept.is_file() and read_json(kept).get("provenance", {}).get("demo") == asked:
        result.audit = AuditReport.load(kept)
        return
    report = audit(result.model, circuit, task, corpus, config, progress=progress)
    result.audit = replace(report, provenance={**report.provenance, "demo": asked})
    result.audit.save(kept)


def _common_target(results: list[ArmResult], target: float) -> float:
    """Give the smallest target, rounded up to two digits, that every able arm reaches."""
    best = [result.losses["best"] for result in results if "best" in result.losses]
    return target if not best else round(max(best) * 1.02 + 0.005, 2)


class _Clock:
    """Says when stages begin and end, and remembers how long each took the first time."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.file, self.say = folder / "times.json", say
        self.times: dict[str, float] = {}
        if self.file.is_file():
            self.times = read_json(self.file)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.say(f"{name} ...")
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        first = self.times.get(name, 0.0)
        if seconds >= first:
            self.times[name] = round(seconds, 1)
            write_text(self.file, json.dumps(self.times, indent=1))
        self.say(
            f"{name}: {seconds:.1f} s" + (f" (first {first:.0f} s)" if first > seconds else "")
        )
