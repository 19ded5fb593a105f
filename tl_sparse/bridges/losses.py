"""What bridges are trained to do (Gao et al. 2025, A.3).

With h_d and h_s the residual streams at site i, f_i and g_i its encoder and decoder, and y_d the
dense model's logits, the four sums over the sites are

    encoder_nmse     sum_i NMSE(f_i(h_d), h_s)
    decoder_nmse     sum_i NMSE(g_i(h_s), h_d)
    kl_into_sparse   sum_i KL(y_d || the sparse model from site i on, given f_i(h_d))
    kl_into_dense    sum_i KL(y_d || the dense model from site i on, given g_i(h_s))

beside the sparse model's next-token loss. Choices of ours where the paper is silent:

- NMSE(a, b) is |a - b|^2 / |b - mean b|^2, token by token, the mean of b over the batch, and the
  mean of the quotients over the tokens: Drori's (`BridgeConfig.nmse_normalisation` has another).
- b and the denominator get no gradient. So the sparse model is not drawn towards what encoders can
  make, and cannot look better by spreading out; through decoders and hybrids it is drawn to the
  dense one.
- KLs are over the whole vocabulary and all positions, in nats per token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from tl_sparse.bridges.hybrids import as_normed, run_from, run_with_residuals
from tl_sparse.bridges.modules import Bridges
from tl_sparse.config import BridgeConfig
from tl_sparse.training import next_token_loss

EPS = 1e-8
"""Added to the denominator of an NMSE."""


@dataclass(frozen=True)
class BridgeLosses:
    """The loss of a batch in its parts; those with coefficient 0 are zeros."""

    next_token: Float[Tensor, ""]
    """Of the sparse model, in nats."""
    encoder_nmse: Float[Tensor, " site"]
    decoder_nmse: Float[Tensor, " site"]
    kl_into_sparse: Float[Tensor, " site"]
    """Of the hybrids that begin dense, in nats per token."""
    kl_into_dense: Float[Tensor, " site"]
    """Of the hybrids that begin sparse."""
    mean_squares: Float[Tensor, "2 site"]
    """Of the entries of the residual stream, the dense model's and the sparse model's, as their
    norms see them: less the mean over channels for LayerNorm."""

    def total(self, config: BridgeConfig) -> Float[Tensor, ""]:
        """Give the sum that is minimised."""
        return (
            self.next_token
            + config.encoder_nmse_coef * self.encoder_nmse.sum()
            + config.decoder_nmse_coef * self.decoder_nmse.sum()
            + config.kl_into_sparse_coef * self.kl_into_sparse.sum()
            + config.kl_into_dense_coef * self.kl_into_dense.sum()
        )


def bridge_losses(
    dense: HookedTransformer,
    sparse: HookedTransformer,
    bridges: Bridges,
    tokens: Int[Tensor, "batch pos"],
    config: BridgeConfig,
) -> BridgeLosses:
    """Compute the loss of a batch; the dense model is run as it is, and given no gradient here.

    Gradients reach the dense model's parameters through the hybrids unless they are frozen, as
    `train_bridged` has them.
    """
    with torch.no_grad():
        dense_logits, of_dense = run_with_residuals(dense, tokens)
        wanted = _log_probabilities(dense_logits)
    logits, of_sparse = run_with_residuals(sparse, tokens)
    encoded = [bridges[i].encode(resid) for i, resid in enumerate(of_dense)]
    decoded = [bridges[i].decode(resid) for i, resid in enumerate(of_sparse)]
    zeros, how = logits.new_zeros(len(bridges)), config.nmse_normalisation
    parts = dict.fromkeys(
        ("encoder_nmse", "decoder_nmse", "kl_into_sparse", "kl_into_dense"), zeros
    )
    if config.encoder_nmse_coef:
        pairs = zip(encoded, of_sparse, strict=True)
        parts["encoder_nmse"] = torch.stack([nmse(a, b, how) for a, b in pairs])
    if config.decoder_nmse_coef:
        pairs = zip(decoded, of_dense, strict=True)
        parts["decoder_nmse"] = torch.stack([nmse(a, b, how) for a, b in pairs])
    if config.kl_into_sparse_coef:
        parts["kl_into_sparse"] = _kls(sparse, encoded, tokens, wanted)
    if config.kl_into_dense_coef:
        parts["kl_into_dense"] = _kls(dense, decoded, tokens, wanted)
    squares = [
        [_mean_square(as_normed(model, resid)) for resid in of_model]
        for model, of_model in ((dense, of_dense), (sparse, of_sparse))
    ]
    return BridgeLosses(
        next_token_loss(logits, tokens),
        **parts,
        mean_squares=torch.stack([torch.stack(some) for some in squares]),
    )


def _kls(
    second: HookedTransformer,
    residuals: list[Float[Tensor, "batch pos d_model"]],
    tokens: Int[Tensor, "batch pos"],
    wanted: Float[Tensor, "batch pos d_vocab"],
) -> Float[Tensor, " site"]:
    """Give the KL of the hybrid that goes on at each site."""
    return torch.stack(
        [
            kl_divergence(wanted, _log_probabilities(run_from(second, site, resid, tokens)))
            for site, resid in enumerate(residuals)
        ]
    )


def nmse(
    made: Float[Tensor, "batch pos d_model"],
    wanted: Float[Tensor, "batch pos d_model"],
    normalisation: str = "token",
) -> Float[Tensor, ""]:
    """Give the normalised squared error of a reconstruction; `wanted` gets no gradient.

    Examples:
        >>> wanted = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> nmse(wanted, wanted).item(), round(nmse(torch.zeros(1, 2, 2), wanted).item(), 4)
        (0.0, 1.0)
    """
    wanted = _exact(wanted.detach())
    deviation = (wanted - wanted.mean((0, 1))).square().sum(-1)
    error = (_exact(made) - wanted).square().sum(-1)
    if normalisation == "batch":
        return error.sum() / (deviation.sum() + EPS)
    return (error / (deviation + EPS)).mean()


def kl_divergence(
    wanted: Float[Tensor, "batch pos d_vocab"], made: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, ""]:
    """Give KL(wanted || made) of log probabilities, in nats per token."""
    return F.kl_div(made, wanted, log_target=True, reduction="none").sum(-1).mean()


def _log_probabilities(logits: Tensor) -> Tensor:
    return _exact(logits).log_softmax(-1)


def _mean_square(resid: Tensor) -> Tensor:
    return _exact(resid.detach()).square().mean()


def _exact(x: Tensor) -> Tensor:
    """Give float32 at least."""
    return x if x.dtype == torch.float64 else x.float()
