"""Calibration of a circuit's answers: logits' = s logits + t, one t per answer (paper, A.5).

With z the logits of a prompt's right and wrong answer, s and t minimise the mean over the training
prompts of

    softplus(-(s (z_right - z_wrong) + t_right - t_wrong))

by 16 steps of L-BFGS from s = 1, t = 0. The authors are not sure that this is principled: circuits
are searched and counted as they are, and the calibrated test loss stands beside. On prompts that
are all answered right the best s is infinite, and 16 steps end somewhere on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tl_sparse.pruning.trial import Trial
from tl_sparse.selection import Selection
from tl_sparse.tasks import PairTask, Split

N_STEPS = 16


@dataclass(frozen=True)
class Calibration:
    """A scale for the logits and a shift for each answer."""

    scale: float
    shifts: Mapping[int, float]
    """By the answer's token."""

    def loss(self, logits: Float[Tensor, "prompt 2"], answers: Int[Tensor, "prompt 2"]) -> float:
        """Give the mean loss, in nats, of calibrated logits of the right and the wrong answer."""
        shift = torch.tensor(
            [[self.shifts[token] for token in row] for row in answers.tolist()], dtype=torch.float64
        )
        z = self.scale * logits.double().cpu() + shift
        return F.softplus(z[:, 1] - z[:, 0]).mean().item()


def calibrate(
    logits: Float[Tensor, "prompt 2"], answers: Int[Tensor, "prompt 2"], *, n_steps: int = N_STEPS
) -> Calibration:
    """Fit scale and shifts to the logits of each prompt's right and wrong answer."""
    tokens, places = answers.cpu().unique(return_inverse=True)
    margins = (logits[:, 0] - logits[:, 1]).double().cpu()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    shifts = torch.zeros(len(tokens), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, shifts], max_iter=n_steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        shift = shifts[places[:, 0]] - shifts[places[:, 1]]
        loss = F.softplus(-(scale * margins + shift)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]: its stub wants a float back
    found = zip(tokens.tolist(), shifts.detach().tolist(), strict=True)
    return Calibration(scale.item(), dict(found))


@torch.no_grad()
def answer_logits(
    trial: Trial, selection: Selection, split: Split
) -> tuple[Float[Tensor, "prompt 2"], Int[Tensor, "prompt 2"]]:
    """Give logits and tokens of each prompt's right and wrong answer with a selection left in."""
    logits, answers = [], []
    for here, batch in trial.outputs(selection, split):
        both = torch.stack([batch.correct, batch.wrong], 1)
        logits.append(here.gather(1, both))
        answers.append(both)
    return torch.cat(logits), torch.cat(answers)


def calibrated(trial: Trial, selection: Selection) -> tuple[float, Calibration] | None:
    """Fit on the training pairs and give the test loss; None for a task that is no pairs."""
    if not isinstance(trial.task, PairTask):
        return None
    fitted = calibrate(*answer_logits(trial, selection, "train"))
    test_logits, test_answers = answer_logits(trial, selection, "test")
    shifts = {int(token): 0.0 for token in test_answers.unique()} | dict(fitted.shifts)
    fitted = Calibration(fitted.scale, shifts)  # an answer that training never had stays unshifted
    return fitted.loss(test_logits, test_answers), fitted
