"""Which of TransformerLens' weight-processing steps a model allows, and why not the others.

Each step rewrites the weights so that the logits stay the same up to a constant, by its own
account. That account does not know AbsTopK, attention sinks or weight masks:

- AbsTopK chooses among the channels as they are: scaling or shifting them changes its choice;
- with sinks a pattern sums to less than 1, so a value bias is no constant that could be moved;
- subtracting means or taking products of matrices makes zeros nonzero.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from tl_sparse.config import SparsityConfig

STEPS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)


class ProcessedTransformer(HookedTransformer):
    """What `HookedSparseTransformer` does when weights are loaded or processed; abstract.

    Subclasses have `sparsity` and a `project_` that chooses the masks anew.
    """

    sparsity: SparsityConfig
    _projects_on_load: bool = True

    def project_(self) -> None:
        """Choose the masks anew, in place."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load parameters as torch does, then choose the masks from what was loaded."""
        result = super().load_state_dict(state_dict, *args, **kwargs)
        if self._projects_on_load:
            self.project_()
        return result

    def load_and_process_state_dict(self, state_dict, *args: Any, **kwargs: Any) -> Any:
        """Load and process as the host does, where that leaves the model's function as it is.

        Raises:
            ValueError: If a step that is asked for, also by default, would change what the model
                computes or make it dense.
        """
        wanted = inspect.signature(HookedTransformer.load_and_process_state_dict)
        bound = wanted.bind(self, state_dict, *args, **kwargs)
        bound.apply_defaults()
        steps = [step for step in STEPS if bound.arguments.get(step)]
        self._check(steps, state_dict)
        with self._one_projection():  # the host loads parameter by parameter
            return super().load_and_process_state_dict(*bound.args[1:], **bound.kwargs)

    @contextmanager
    def _one_projection(self) -> Iterator[None]:
        self._projects_on_load = False
        try:
            yield
        finally:
            self._projects_on_load = True
            self.project_()

    def _check(self, steps: Iterable[str], state_dict: Mapping[str, Tensor]) -> None:
        check_processing(steps, self.cfg, self.sparsity, state_dict)

    def fold_layer_norm(self, state_dict, *args: Any, **kwargs: Any) -> Any:
        """Fold the norms of a state dict, where that is exact; a `ValueError` elsewhere."""
        self._check(["fold_ln"], state_dict)
        return super().fold_layer_norm(state_dict, *args, **kwargs)

    def center_writing_weights(self, state_dict) -> Any:
        """Centre what writes to the stream, where that is exact; a `ValueError` elsewhere."""
        self._check(["center_writing_weights"], state_dict)
        return super().center_writing_weights(state_dict)

    def center_unembed(self, state_dict) -> Any:
        """Centre W_U, where that is exact; a `ValueError` elsewhere."""
        self._check(["center_unembed"], state_dict)
        return super().center_unembed(state_dict)

    def fold_value_biases(self, state_dict) -> Any:
        """Fold the value biases into b_O, where that is exact; a `ValueError` elsewhere."""
        self._check(["fold_value_biases"], state_dict)
        return super().fold_value_biases(state_dict)

    def refactor_factored_attn_matrices(self, state_dict) -> Any:
        """Refactor QK and OV, where that is exact; a `ValueError` elsewhere."""
        self._check(["refactor_factored_attn_matrices"], state_dict)
        return super().refactor_factored_attn_matrices(state_dict)


def check_processing(
    steps: Iterable[str],
    cfg: HookedTransformerConfig,
    sparsity: SparsityConfig,
    state_dict: Mapping[str, Tensor],
) -> None:
    """Check that the steps leave what a model computes, and its density, as they are.

    Raises:
        ValueError: If one would not; the message says why for each, and what to do.
    """
    reasons = _reasons(cfg, sparsity, state_dict)
    refused = [f"{step}: {reasons[step]}" for step in steps if reasons.get(step)]
    if refused:
        raise ValueError(
            f"This would change what this model computes, or make it dense. {'; '.join(refused)}. "
            "Load with load_state_dict, or switch these steps off in load_and_process_state_dict."
        )


def _reasons(
    cfg: HookedTransformerConfig, sparsity: SparsityConfig, state_dict: Mapping[str, Tensor]
) -> dict[str, str]:
    """Give the reason against each step that is not allowed."""
    norm = str(cfg.normalization_type)
    has_gain, centers = norm in ("LN", "RMS"), norm in ("LN", "LNPre")
    densities = (sparsity.weight_density, sparsity.embedding_density, sparsity.bias_density)

    def topk(*sites: str) -> bool:
        return any(sparsity.site_density(site) < 1 for site in sites)

    def nonzero(suffix: str) -> bool:
        return any(name.endswith(suffix) and bool(torch.any(t)) for name, t in state_dict.items())

    reasons = {}
    if has_gain and topk("attn_in", "mlp_in"):
        reasons["fold_ln"] = "AbsTopK ranks what the norm gives with its gain, not without"
    elif has_gain and getattr(sparsity, "position_channels", 0):
        reasons["fold_ln"] = "the host does not know the norms of the position channels"
    elif norm == "LN" and min(densities) < 1:
        reasons["fold_ln"] = "with layer norm it subtracts means and so fills the masked weights"
    if centers and (sparsity.weight_density < 1 or sparsity.embedding_density < 1):
        reasons["center_writing_weights"] = "subtracting means fills the masked weights"
    elif centers and topk("attn_out", "mlp_out"):
        reasons["center_writing_weights"] = "AbsTopK ranks what attention and MLP write, uncentred"
    if sparsity.embedding_density < 1:
        reasons["center_unembed"] = "subtracting means fills the masked entries of W_U"
    if nonzero("attn.b_V"):
        if cfg.use_attention_sinks:
            moved = "with attention sinks the patterns do not sum to 1"
            reasons["fold_value_biases"] = f"{moved}, so a value bias is no constant"
        elif topk("v", "attn_out"):
            reasons["fold_value_biases"] = "AbsTopK ranks values, or attn_out, with this bias"
        elif sparsity.bias_density < 1:
            reasons["fold_value_biases"] = "it fills the masked entries of b_O"
    if sparsity.weight_density < 1:
        reasons["refactor_factored_attn_matrices"] = "products of sparse matrices are dense"
    elif topk("q", "k", "v", "attn_out") or getattr(sparsity, "position_channels", 0):
        reasons["refactor_factored_attn_matrices"] = "AbsTopK ranks the channels that it would mix"
    elif cfg.use_attention_sinks and nonzero("attn.b_V"):
        reasons["refactor_factored_attn_matrices"] = (
            "it folds the value biases, which are no constants under attention sinks"
        )
    return reasons
