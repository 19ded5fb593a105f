"""`train`: the sparse training loop, read top to bottom.

One step of Gao et al. 2025 (arXiv 2511.13653, sections 2.1 and A.2), with theta the parameters:

1. gradients of the mean next-token loss, brought to root mean square 1 over all entries,
2. a dense Adam step: gradients and moments are never masked, so zeroed weights can come back,
3. theta <- top-k of |theta| per matrix at this step's density (`schedules.density_at`),
4. theta <- theta - weight_decay x learning rate x theta on the matrices.

With `regrow_every` = N > 1, ours, steps after the annealing are like that only every N-th time. In
the steps between no weight comes back: 1. is made for live weights alone, 3. keeps the masks.

Order of the data, and hence the whole run on a CPU, is a function of (seed, step): a run that was
stopped and resumed gives bit for bit the weights of one that was not.
"""

import importlib.util
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from tl_sparse.checkpoints import (
    config_to_dict,
    read_json,
    read_tensors,
    versions,
    write_tensors,
)
from tl_sparse.config import TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.files import recover_folder, whole_folder, write_text
from tl_sparse.history import History, Sums, read_log
from tl_sparse.masks import zero_outside_
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.schedules import density_at, embedding_density_at, learning_rate_at, n_steps
from tl_sparse.summary import count_nonzero, n_dead_neurons
from tl_sparse.threads import keep_freed_memory


class DivergedError(RuntimeError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""


@torch.no_grad()
def mean_loss(
    model: HookedTransformer, windows: Int[Tensor, "window pos"], *, batch_size: int = 32
) -> float:
    """Give the mean next-token loss, in nats per token, over windows of tokens."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for batch in windows.split(batch_size):
        batch = batch.to(device)
        loss = next_token_loss(model(batch), batch, reduction="sum")
        total, count = total + loss.item(), count + batch[:, 1:].numel()
    return total / count


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    *,
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """Cross entropy, in nats, of each token given those before it, in float32 at least."""
    logits = logits.flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)  # the last logits predict nothing
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction=reduction)


def train(
    model: HookedSparseTransformer,
    corpus: Corpus,
    config: TrainingConfig | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train a model in place on a corpus and give the log.

    With a `folder`, the run writes `log.jsonl` and a checkpoint there, at intervals and on Ctrl-C;
    a second call with the same folder, config, corpus and a freshly built model goes on where the
    first was stopped, or returns at once if it had ended. `folder/checkpoint/model` is a model
    folder like any other. When the densities are annealed, weights masked in `model` start from
    fresh draws (`model.reopen_`); fine-tune a sparse model with `anneal="none"`.

    Raises:
        ValueError: If corpus and model do not fit, or the folder holds a run with other settings.
        DivergedError: If the loss becomes NaN or infinite.
        KeyboardInterrupt: On Ctrl-C, after the step in hand and the checkpoint.
    """
    keep_freed_memory()
    run = _Run(model, corpus, config or TrainingConfig(), folder, progress)
    with run.accelerated(), model.using_attention("auto"), _finish_step_on_interrupt() as stop:
        while run.step < run.total:
            run.take_step()
            stopping = stop.requested and folder is not None
            if run.step % run.config.eval_every == 0 or run.step == run.total:
                run.evaluate()
            if run.step % run.config.checkpoint_every == 0 or run.step == run.total or stopping:
                run.checkpoint()
            if stop.requested:
                raise KeyboardInterrupt
    return History(tuple(run.records))


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        model: HookedSparseTransformer,
        corpus: Corpus,
        config: TrainingConfig,
        folder: str | Path | None,
        progress: bool,
    ) -> None:
        self.model, self.corpus, self.config = model, corpus, config
        self.folder = None if folder is None else Path(folder)
        self.n_ctx = config.n_ctx or model.cfg.n_ctx
        _check_fit(model, corpus, self.n_ctx)
        _check_trackers(config, self.folder)
        self.total, self.step = n_steps(config, self.n_ctx), 0
        self.records: list[dict[str, Any]] = []
        n_windows = min(config.n_eval_windows, corpus.validation.windows_per_epoch(self.n_ctx))
        self.windows = corpus.validation.windows(self.n_ctx, max(1, n_windows))
        self.decayed = [
            spec.name for spec in model.weight_masks.specs if spec.kind in ("weight", "embedding")
        ]
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer: Any = torch.optim.Adam(
            self.parameters.values(), lr=0.0, betas=config.betas, eps=config.eps, fused=True
        )
        self.seconds, self.sums, self.progress = 0.0, Sums(), progress
        self.all_to_live = 1.0
        """Norm of the last gradient for all weights, over that of its part for live ones."""
        if not self._resume() and config.anneal != "none":
            model.reopen_(config.seed)
        if corpus.hash not in model.trained_on:
            model.trained_on = (*model.trained_on, corpus.hash)

    # -- one step -----------------------------------------------------------------------------

    def take_step(self) -> None:
        """Gradients, Adam, projection, decay: the four lines of the module's docstring."""
        began = time.perf_counter()
        config, sparsity = self.config, self.model.sparsity
        rate = learning_rate_at(sparsity.weight_density, self.step, self.total, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        frozen = not config.regrow or not self._regrows()
        self.model.products.live_gradient = frozen and config.regrow
        loss = self._gradients()
        rms = self._scale_gradients()
        self._check_finite(loss, rms)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if frozen:
            self.model.apply_masks_()
        else:
            self._set_density()
        with torch.no_grad():
            decayed: list[Tensor] = [
                self.parameters[name] for name in self.decayed if name in self.parameters
            ]
            if config.weight_decay and decayed:
                shrink = 1 - config.weight_decay * rate
                # One call for all, as torch.optim has it; the name is private to torch.
                torch._foreach_mul_(decayed, shrink)  # pyright: ignore[reportPrivateImportUsage]
        self.step += 1
        self.seconds += time.perf_counter() - began
        self.sums.add(loss, rms, rate, config.batch_size * self.n_ctx, began)
        self.bar.update(1)

    def _regrows(self) -> bool:
        """Tell whether zeroed weights get a gradient in this step and may come back."""
        config = self.config
        annealed = config.anneal == "none" or self.step >= config.anneal_stop * self.total
        return not annealed or self.step % config.regrow_every == 0

    def _gradients(self) -> float:
        config, accelerator = self.config, self.accelerator
        batch = self.corpus.train.batch(
            self.step, batch_size=config.batch_size, n_ctx=self.n_ctx, seed=config.seed
        ).to(accelerator.device)
        # Each process takes its rows of the same global batch, so one process gives the same sum.
        mine = batch[accelerator.process_index :: accelerator.num_processes]
        total = 0.0
        for micro in mine.chunk(config.gradient_accumulation):
            loss = next_token_loss(self.wrapped(micro), micro)
            accelerator.backward(loss * (len(micro) / len(mine)))
            total += loss.item() * len(micro) / len(mine)
        if accelerator.num_processes > 1:
            mean = accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean")
            total = float(mean)  # pyright: ignore[reportArgumentType]
        return total

    def _scale_gradients(self) -> float:
        self.accelerator.unscale_gradients(self.optimizer)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if self.config.regrow and self.config.regrow_every > 1:
            norm = self._norm_of_all(norm)
        rms = norm / math.sqrt(sum(p.numel() for p in self.parameters.values()))
        target, scale = self.config.gradient_rms, 1.0
        if self.config.gradient_scaling == "normalize":
            scale = target / (rms + 1e-5)
        elif self.config.gradient_scaling == "clip" and rms > target:
            scale = target / rms
        if scale != 1:
            torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
        return rms

    def _norm_of_all(self, norm: float) -> float:
        """Give the gradient's norm; zeroed weights without one count as in the last that had all.

        In a sparse model most of the norm is theirs: left out, the others would be scaled up.
        """
        live = []
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is not None and name in self.model.weight_masks:
                mask = self.model.weight_masks[name]
                if self.model.products.live_gradient:
                    zero_outside_(gradient, mask)
                else:
                    gradient = gradient * mask.view(torch.uint8)
            if gradient is not None:
                live.append(gradient)
        norm_of_live = torch.nn.utils.get_total_norm(live).item()
        if self.model.products.live_gradient:
            return norm_of_live * self.all_to_live
        self.all_to_live = norm / norm_of_live if norm_of_live else 1.0
        return norm

    def _check_finite(self, loss: float, rms: float) -> None:
        overflow = self.config.precision == "fp16"  # its scaler meets infinite gradients by design
        if math.isfinite(loss) and (math.isfinite(rms) or overflow):
            return
        kept = ""
        if self.folder is not None and (self.folder / "checkpoint").is_dir():
            kept = f" The last good checkpoint is kept in {self.folder / 'checkpoint'}."
        raise DivergedError(
            f"The loss is {loss} with gradient RMS {rms} at step {self.step} of {self.total}. Try "
            f"a lower learning_rate (now {self.config.learning_rate}), a longer warmup_fraction, "
            f'gradient_scaling="clip", or precision="float32".{kept}'
        )

    def _set_density(self) -> None:
        sparsity, at = self.model.sparsity, max(self.step, 0)
        args = (at, self.total, self.config)
        self.model.project_(
            weight_density=density_at(sparsity.weight_density, *args),
            embedding_density=embedding_density_at(sparsity.embedding_density, *args),
            bias_density=embedding_density_at(sparsity.bias_density, *args),
        )

    # -- logs and checkpoints -----------------------------------------------------------------

    def evaluate(self) -> None:
        """Log the validation loss and the state of the sparsity."""
        began = time.perf_counter()
        record = self.sums.summary() | {
            "step": self.step,
            "tokens": self.step * self.config.batch_size * self.n_ctx,
            "validation_loss": mean_loss(self.model, self.windows),
            "weight_density": density_at(
                self.model.sparsity.weight_density, self.step - 1, self.total, self.config
            ),
            "nonzero": count_nonzero(self.model),
            "dead_neurons": list(n_dead_neurons(self.model, self.model.cfg.n_layers)),
        }
        self.seconds += time.perf_counter() - began
        record["seconds"] = round(self.seconds, 3)
        self.sums = Sums()
        self.records.append(record)
        self.bar.set_postfix(loss=f"{record['validation_loss']:.3f}")
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
        self.accelerator.log(numbers, step=self.step)
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    def checkpoint(self) -> None:
        """Write model, moments and position in the run, whole or not at all."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        state, scaler = self.optimizer.state, self.accelerator.scaler
        moments = {
            f"{name}/{key}": state[parameter][key]
            for name, parameter in self.parameters.items()
            for key in ("exp_avg", "exp_avg_sq", "step")
            if key in state[parameter]
        }
        position = self._identity() | {
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums.__dict__,
            "all_to_live": self.all_to_live,
            "scaler": None if scaler is None else scaler.state_dict(),
            "versions": versions(),
        }
        with whole_folder(self.folder / "checkpoint") as place:
            self.model.save(place / "model")
            write_tensors(place / "moments.safetensors", moments)
            (place / "state.json").write_text(json.dumps(position, indent=1), encoding="utf-8")

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on."""
        return {
            "config": json.loads(json.dumps(self.config.to_dict())),
            "sparsity": self.model.sparsity.to_dict(),
            "shape": config_to_dict(self.model.cfg),
            "corpus": self.corpus.hash,
            "total": self.total,
        }

    def _resume(self) -> bool:
        """Take up the run that the folder holds, if there is one."""
        if self.folder is None:
            return False
        place = self.folder / "checkpoint"
        recover_folder(place)
        if not place.is_dir():
            (self.folder / "log.jsonl").unlink(missing_ok=True)
            return False
        state = read_json(place / "state.json")
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(
                    f"{self.folder} holds a run with another {key}: {state.get(key)} there, {mine} "
                    "now. Give another folder, or remove it to start anew."
                )
        saved = HookedSparseTransformer.load(place / "model")
        moments = read_tensors(place / "moments.safetensors")
        with torch.no_grad():
            theirs = dict(saved.named_parameters())
            for name, parameter in self.model.named_parameters():
                parameter.copy_(theirs[name])
        for name, mask in saved.weight_masks.items():
            self.model.weight_masks.set_(name, mask)
        for name, parameter in self.parameters.items():
            keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{name}/{key}" in moments]
            self.optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device) for key in keys
            }
        try:
            self.step, self.seconds = state["step"], state["seconds"]
            self.sums, self._scaler_state = Sums(**state["sums"]), state["scaler"]
            self.all_to_live = state["all_to_live"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place / 'state.json'} is damaged: {error!r}.") from None
        log = self.folder / "log.jsonl"
        self.records = [record for record in read_log(log) if record["step"] <= self.step]
        write_text(log, "".join(json.dumps(record) + "\n" for record in self.records))
        return True

    _scaler_state: dict[str, Any] | None = None

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Put model and optimiser on accelerate's devices and precision for the time of the run."""
        config = self.config
        precision = {"float32": "no"}.get(config.precision, config.precision)
        cpu = next(self.model.parameters()).device.type == "cpu"
        AcceleratorState._reset_state()  # else a process' second run keeps the first's precision
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=list(config.trackers) or None,
            project_dir=self.folder,
        )
        if config.batch_size % self.accelerator.num_processes:
            raise ValueError(
                "Each process takes an equal part of a batch: batch_size must be a multiple of the "
                f"number of processes, got {config.batch_size} and "
                f"{self.accelerator.num_processes}."
            )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if self.accelerator.scaler is not None and self._scaler_state is not None:
            self.accelerator.scaler.load_state_dict(self._scaler_state)
        if config.trackers:
            self.accelerator.init_trackers("tl_sparse", config=_flat(config.to_dict()))
        self.bar = tqdm(
            total=self.total,
            initial=self.step,
            disable=not self.progress or not self.accelerator.is_main_process,
            desc="train",
            unit="step",
            mininterval=0.5,
        )
        try:
            yield
        finally:
            self.bar.close()
            self.model.products.live_gradient = False
            self.accelerator.end_training()
            for name in ("forward", "_original_forward"):  # what accelerate put on for autocast
                vars(self.model).pop(name, None)


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _finish_step_on_interrupt() -> Iterator[_Stop]:
    """Turn the first Ctrl-C into a request to stop after the step in hand; a second one is real."""
    stop = _Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: Ctrl-C does not come here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _check_fit(model: HookedSparseTransformer, corpus: Corpus, n_ctx: int) -> None:
    if corpus.d_vocab > model.cfg.d_vocab:
        raise ValueError(
            f"The corpus has {corpus.d_vocab} tokens in its vocabulary, the model "
            f"{model.cfg.d_vocab}. Build the model with d_vocab=corpus.d_vocab and "
            "tokenizer=corpus.tokenizer."
        )
    if n_ctx > model.cfg.n_ctx:
        raise ValueError(f"n_ctx={n_ctx} is longer than the model's own, {model.cfg.n_ctx}.")


def _check_trackers(config: TrainingConfig, folder: Path | None) -> None:
    if "tensorboard" in config.trackers and folder is None:
        raise ValueError(
            "tensorboard writes its events into the run's folder: give train a folder."
        )
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ValueError(
                f"trackers asks for {tracker}, which is not installed: pip install "
                "tl-sparse[track]. The JSON-lines log is written in any case."
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in values.items()}
