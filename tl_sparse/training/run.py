"""One run of `train`: its steps, its log, and the devices that it runs on."""

import importlib.util
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm import tqdm

from tl_sparse.config import TrainingConfig
from tl_sparse.data import Corpus
from tl_sparse.history import Sums
from tl_sparse.masks import zero_outside_
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.schedules import density_at, embedding_density_at, learning_rate_at, n_steps
from tl_sparse.summary import count_nonzero, n_dead_neurons
from tl_sparse.training.losses import mean_loss
from tl_sparse.training.objective import Objective
from tl_sparse.training.saving import SavedRun


class DivergedError(RuntimeError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""


class TrainingRun(SavedRun):
    """The state of one call of `train`; `take_step` inside `accelerated` is one step of it."""

    def __init__(
        self,
        model: HookedSparseTransformer,
        corpus: Corpus,
        config: TrainingConfig,
        folder: str | Path | None,
        progress: bool,
        objective: Objective | None = None,
    ) -> None:
        self.model, self.corpus, self.config = model, corpus, config
        self.objective = Objective(model) if objective is None else objective
        _check_objective(self.objective, model)
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
        trained = dict(model.named_parameters()) | dict(self.objective.own_parameters())
        self.parameters = {n: p for n, p in trained.items() if p.requires_grad}
        self.optimizer: Any = torch.optim.Adam(
            self.parameters.values(), lr=0.0, betas=config.betas, eps=config.eps, fused=True
        )
        self.seconds, self.sums, self.progress = 0.0, Sums(), progress
        self.all_to_live = 1.0
        if not self.resume() and config.anneal != "none":
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
        *first, last = mine.chunk(config.gradient_accumulation)
        for micro in (*first, last):
            # Gradients are averaged over the processes once, with those of the last micro-batch.
            with nullcontext() if micro is last else accelerator.no_sync(self.wrapped):
                loss = self.wrapped(micro)
                accelerator.backward(loss * (len(micro) / len(mine)))
            total += loss.item() * len(micro) / len(mine)
        if accelerator.num_processes > 1:
            here = torch.tensor(total, dtype=torch.float64, device=accelerator.device)
            mean = accelerator.reduce(here, "mean")
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

    def in_any_process(self, flag: bool) -> bool:
        """Tell whether something is so in any process, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        count = self.accelerator.reduce(torch.tensor(int(flag), device=self.accelerator.device))
        return bool(count)

    # -- logs and checkpoints -----------------------------------------------------------------

    def evaluate(self) -> None:
        """Log the validation loss and the state of the sparsity."""
        began = time.perf_counter()
        with self.accelerator.autocast():
            validation_loss = mean_loss(self.model, self.windows)
            scores = self.objective.scores(self.windows)
        record = self.sums.summary() | {
            "step": self.step,
            "tokens": self.step * self.config.batch_size * self.n_ctx,
            "validation_loss": validation_loss,
            "weight_density": density_at(
                self.model.sparsity.weight_density, self.step - 1, self.total, self.config
            ),
            "nonzero": count_nonzero(self.model),
            "dead_neurons": list(n_dead_neurons(self.model, self.model.cfg.n_layers)),
            **scores,
        }
        self.seconds += time.perf_counter() - began
        record["seconds"] = round(self.seconds, 3)
        self.sums = Sums()
        self.records.append(record)
        self.bar.set_postfix(loss=f"{record['validation_loss']:.3f}", refresh=False)
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
        self.accelerator.log(numbers, step=self.step)
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    def checkpoint(self) -> None:
        """Write model, moments and position in the run, whole or not at all."""
        if self.folder is None:
            return
        if self.accelerator.is_main_process:
            self.write_checkpoint(self.folder / "checkpoint")
        self.accelerator.wait_for_everyone()

    def _check_same_step(self) -> None:
        """Check that all processes took up the same run, or began anew."""
        here = torch.tensor([self.step], device=self.accelerator.device)
        gathered: Any = self.accelerator.gather(here)
        steps = gathered.tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"The processes would go on from different steps, {steps}: each must see the "
                f"same folder, here {self.folder}. Use one that all machines share."
            )

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        """Put model and optimiser on accelerate's devices and precision for the time of the run."""
        config = self.config
        precision = {"float32": "no"}.get(config.precision, config.precision)
        cpu = next(self.model.parameters()).device.type == "cpu"
        # Else a process' second run keeps the first's precision, and its device.
        AcceleratorState._reset_state(PartialState._shared_state.get("_cpu", cpu) != cpu)
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=list(config.trackers) or None,
            project_dir=self.folder,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        if config.batch_size % self.accelerator.num_processes:
            raise ValueError(
                "Each process takes an equal part of a batch: batch_size must be a multiple of the "
                f"number of processes, got {config.batch_size} and "
                f"{self.accelerator.num_processes}."
            )
        self._check_same_step()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        if self.accelerator.num_processes > 1:
            self.wrapped.broadcast_buffers = False  # the masks: every process chooses the same
        if self.accelerator.scaler is not None and self.scaler_state is not None:
            self.accelerator.scaler.load_state_dict(self.scaler_state)
        if config.trackers:
            self.accelerator.init_trackers("tl_sparse", config=_flat(config.to_dict()))
        self.bar = tqdm(
            total=self.total,
            initial=self.step,
            disable=not self.progress or not self.accelerator.is_main_process,
            desc="train",
            unit="step",
        )
        try:
            yield
        finally:
            self.bar.close()
            self.model.products.live_gradient = False
            for tracker in self.accelerator.trackers:  # end_training would end the group too
                tracker.finish()
            # What accelerate put on: with its mark left, a second run would have no autocast.
            for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
                vars(self.objective).pop(name, None)


def _check_fit(model: HookedSparseTransformer, corpus: Corpus, n_ctx: int) -> None:
    if corpus.d_vocab > model.cfg.d_vocab:
        raise ValueError(
            f"The corpus has {corpus.d_vocab} tokens in its vocabulary, the model "
            f"{model.cfg.d_vocab}. Build the model with d_vocab=corpus.d_vocab and "
            "tokenizer=corpus.tokenizer."
        )
    if n_ctx > model.cfg.n_ctx:
        raise ValueError(f"n_ctx={n_ctx} is longer than the model's own, {model.cfg.n_ctx}.")


def _check_objective(objective: Objective, model: HookedSparseTransformer) -> None:
    if objective.model is not model:
        raise ValueError(
            "The objective holds another model than the one that is to be trained. Build it of the "
            "same object."
        )


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
