"""A sparse model tied to a given dense one, and the dense one steered through it.

Gao et al. 2025 (arXiv 2511.13653, 2.3, 3.3, A.3 and A.4). Our names for their symbols: the residual
stream h_i before sublayer i is *site* i, the encoder f_i and decoder g_i are a *bridge*.

1. `train_bridged` trains a sparse model from scratch together with one bridge for each site of a
   frozen dense model of the same depth: an encoder (linear, then AbsTopK) makes sparse residuals
   of dense ones, a decoder (linear) dense residuals of sparse ones.
   `fit_bridges` fits bridges alone, between two models that are trained already.
2. Each bridge is to reconstruct (`losses.nmse`), and each *hybrid*, which runs in one model up to a
   site, crosses its bridge and goes on in the other, is to answer as the dense model does.
3. `strength_curve` then moves one node of the sparse model, maps the move through the decoder, and
   looks whether the dense model changes its answer (`steer`, `rank_nodes`). `read_limits` says how
   far any push could get, with and without the bridge.
"""

from tl_sparse.bridges.curve import StrengthCurve, rank_nodes, read_nodes, strength_curve
from tl_sparse.bridges.fit import fit_bridges
from tl_sparse.bridges.hybrids import hybrid_logits, run_from, run_with_residuals
from tl_sparse.bridges.limits import ReadLimit, read_limits
from tl_sparse.bridges.losses import BridgeLosses, bridge_losses, kl_divergence, nmse
from tl_sparse.bridges.modules import Bridge, Bridges
from tl_sparse.bridges.steering import steer, steering_push
from tl_sparse.bridges.train import BridgedObjective, train_bridged
from tl_sparse.config import BridgeConfig

__all__ = [
    "Bridge",
    "BridgeConfig",
    "BridgeLosses",
    "BridgedObjective",
    "Bridges",
    "ReadLimit",
    "StrengthCurve",
    "bridge_losses",
    "fit_bridges",
    "hybrid_logits",
    "kl_divergence",
    "nmse",
    "rank_nodes",
    "read_limits",
    "read_nodes",
    "run_from",
    "run_with_residuals",
    "steer",
    "steering_push",
    "strength_curve",
    "train_bridged",
]
