"""The loss that models are trained and compared by."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer


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
