"""The activation cache of a sparse transformer: TransformerLens' own, exact under AbsTopK.

TransformerLens takes attn_out to be the sum of its heads' results and b_O, and mlp_out that of its
neurons' results and b_out. With AbsTopK behind them that holds of the *kept* channels alone, so

1. a head's or neuron's contribution to the residual stream is its result in the channels that
   AbsTopK kept (there attn_out or mlp_out is nonzero), and 0 in the others,
2. the same goes for the biases, whose row then differs from token to token,
3. a norm's gain, where it was not folded into the weights, multiplies what is read through it.

What the bigram table adds to a logit passes by the residual stream: `logit_decomposition` has it as
a row of its own.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.slice import Slice

SliceLike = Any
"""What TransformerLens takes for a slice: None, a number, a slice, an array, its own `Slice`."""


class SparseActivationCache(ActivationCache):
    """What `HookedSparseTransformer.run_with_cache` gives.

    Beside TransformerLens' methods it has `logit_decomposition`. `cache["result", layer]` is what
    the hook point shows, the heads' results *before* AbsTopK; `stack_head_results` is after it.
    """

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "SparseActivationCache":
        """Slice the batch, as the host does; override: it would give its own class."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return SparseActivationCache(sliced.cache_dict, self.model, sliced.has_batch_dim)

    # -- parts of the residual stream ---------------------------------------------------------

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceLike = None,
        apply_ln: bool = False,
    ) -> Any:
        """Stack what each head adds to the residual stream, after AbsTopK at attn_out."""
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        stack, labels = super().stack_head_results(layer, True, pos_slice=pos_slice)
        heads = stack.split(self.model.cfg.n_heads) if layer else ()
        masked = [self._masked(part, "attn_out", i, pos_slice) for i, part in enumerate(heads)]
        stack = torch.cat(masked) if masked else stack.to(self["resid_pre", 0].dtype)
        if incl_remainder:
            stream = self["resid_post", layer - 1]  # for layer 0, as in the host, the last one
            rest = pos_slice.apply(stream, dim=-2) - stack.sum(0)
            stack, labels = torch.cat([stack, rest[None]]), [*labels, "remainder"]
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: SliceLike = None,
        pos_slice: SliceLike = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """Give what each neuron adds to the residual stream, after AbsTopK at mlp_out."""
        neuron_slice, pos_slice = _slice(neuron_slice), _slice(pos_slice)
        mask = self._kept("mlp_out", layer, pos_slice)
        acts = neuron_slice.apply(pos_slice.apply(self["post", layer, "mlp"], dim=-2), dim=-1)
        weight = neuron_slice.apply(self.model.blocks[layer].mlp.W_out, dim=0)
        if project_output_onto is None:
            results = acts[..., None] * weight
            if mask is None:
                return results
            return results * (mask if results.ndim == mask.ndim else mask.unsqueeze(-2))
        onto = project_output_onto.reshape(len(project_output_onto), -1)
        projected = weight @ (onto if mask is None else mask[..., None] * onto)
        results = acts[..., None] * projected
        return results if project_output_onto.ndim == 2 else results.squeeze(-1)

    def _stack_neuron_results_apply_ln_projected(
        self, layer: int, pos_slice: Slice, neuron_slice: Slice, project_2d: Tensor
    ) -> Tensor:
        """Stack all neurons, through the norm and projected; override: AbsTopK and the gain."""
        return self._neurons_through_norm(layer, False, pos_slice, neuron_slice, project_2d)

    def _neurons_through_norm(
        self, layer: int, mlp_input: bool, pos_slice: Slice, neuron_slice: Slice, onto: Tensor
    ) -> Tensor:
        """Give (neuron, ..., output): with a scale that is given, a norm is a linear map."""
        gain, _ = self._gain_and_bias(layer, mlp_input)
        onto = onto if gain is None else gain[:, None] * onto
        if self.model.cfg.normalization_type in ("LN", "LNPre"):
            onto = onto - onto.mean(0)
        results = [self.get_neuron_results(i, neuron_slice, pos_slice, onto) for i in range(layer)]
        scale = self._get_cached_ln_scale(layer, mlp_input, pos_slice)
        return (torch.cat(results, dim=-2) / scale[..., None]).movedim(-2, 0)

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceLike = None,
        batch_slice: SliceLike = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """Put the parts of a stream through a norm; override: the host leaves out its gain."""
        layer = self._layer(layer)
        normed = super().apply_ln_to_stack(
            residual_stack, layer, mlp_input, pos_slice, batch_slice, has_batch_dim, recompute_ln
        )
        gain, _ = self._gain_and_bias(layer, mlp_input)
        applied = recompute_ln and layer == self.model.cfg.n_layers  # the host ran the norm itself
        return normed if gain is None or applied else normed * gain

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceLike = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """Split what a layer reads into heads, neurons, embeddings and biases, in the host's order.

        The sum of the rows is the residual stream, or with `apply_ln` what the norm makes of it.
        """
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        onto = project_output_onto
        onto = onto if onto is None or onto.ndim == 2 else onto[:, None]

        def finish(stack: Tensor) -> Tensor:
            if apply_ln:
                stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
            return stack if onto is None else stack @ onto

        heads, labels = self.stack_head_results(layer + mlp_input, True, pos_slice=pos_slice)
        parts = [finish(heads)]
        if not self.model.cfg.attn_only and layer > 0:
            if not expand_neurons:
                mlps, names = self.decompose_resid(
                    layer, mode="mlp", pos_slice=pos_slice, incl_embeds=False, return_labels=True
                )
                parts.append(finish(mlps))
            elif apply_ln and onto is not None:
                names = self._neuron_labels(layer)
                parts.append(
                    self._neurons_through_norm(layer, mlp_input, pos_slice, _slice(None), onto)
                )
            else:
                names = self._neuron_labels(layer)
                results = [self.get_neuron_results(i, None, pos_slice, onto) for i in range(layer)]
                neurons = torch.cat(results, dim=-2).movedim(-2, 0)
                through = apply_ln and onto is None
                parts.append(finish(neurons) if through else neurons)
            labels = [*labels, *names]
        for name in ("embed", "pos_embed"):
            if f"hook_{name}" in self.cache_dict:
                parts.append(finish(pos_slice.apply(self[f"hook_{name}"], dim=-2)[None]))
                labels = [*labels, name]
        parts.append(self._bias_row(layer, mlp_input, expand_neurons, apply_ln, pos_slice, onto))
        stack = torch.cat(parts)
        stack = stack.squeeze(-1) if onto is not project_output_onto else stack
        return (stack, [*labels, "bias"]) if return_labels else stack

    def _bias_row(
        self,
        layer: int,
        mlp_input: bool,
        expand_neurons: bool,
        apply_ln: bool,
        pos_slice: Slice,
        onto: Tensor | None,
    ) -> Tensor:
        """Give what the biases add: of attention always, of the MLPs if they are in neurons."""
        blocks: Any = self.model.blocks
        row = torch.zeros_like(pos_slice.apply(self["resid_pre", 0], dim=-2))
        for i in range(layer + mlp_input):
            row = row + self._masked(blocks[i].attn.b_O, "attn_out", i, pos_slice)
        for i in range(layer if expand_neurons and not self.model.cfg.attn_only else 0):
            row = row + self._masked(blocks[i].mlp.b_out, "mlp_out", i, pos_slice)
        row = row[None]
        if apply_ln:
            row = self.apply_ln_to_stack(row, layer, mlp_input, pos_slice)
            _, norm_bias = self._gain_and_bias(layer, mlp_input)
            row = row if norm_bias is None else row + norm_bias
        return row if onto is None else row @ onto

    # -- logits -------------------------------------------------------------------------------

    def logit_decomposition(
        self,
        tokens: Any,
        incorrect_tokens: Any = None,
        *,
        unit: str = "component",
        pos_slice: SliceLike = None,
    ) -> tuple[Float[Tensor, "*rows_batch_and_pos"], list[str]]:
        """Split a logit, or a difference of two, into rows that add up to it; give the labels too.

        The rows are the parts of the residual stream ("component": embeddings, attention and MLP of
        each layer; "head": heads, MLPs, embeddings, biases; "neuron": neurons instead of MLPs),
        then `ln_bias` if the last norm has one, `b_U`, and `bigram` if the model has a table.
        Tokens are given as for TransformerLens' `logit_attrs`.

        Raises:
            ValueError: If the logits are no sum (a soft cap), the cache lacks the table's output,
                or the tokens do not fit its batch and positions.
        """
        pos_slice = _slice(pos_slice)
        if self.model.cfg.output_logits_soft_cap > 0:
            raise ValueError(
                "With a soft cap a logit is no sum of parts; this model has output_logits_soft_cap="
                f"{self.model.cfg.output_logits_soft_cap}."
            )
        if unit == "component":
            parts: Any = self.decompose_resid(pos_slice=pos_slice, return_labels=True)
        elif unit in ("head", "neuron"):
            parts = self.get_full_resid_decomposition(
                expand_neurons=unit == "neuron", pos_slice=pos_slice, return_labels=True
            )
        else:
            raise ValueError(f'unit is one of "component", "head", "neuron", got {unit!r}.')
        stack, labels = parts
        constants = self._constant_logits(tokens, pos_slice)
        if incorrect_tokens is not None:
            other = self._constant_logits(incorrect_tokens, pos_slice)
            constants = {name: value - other[name] for name, value in constants.items()}
        rows = self.logit_attrs(
            stack, tokens, incorrect_tokens, pos_slice, has_batch_dim=self.has_batch_dim
        )
        last = [value.expand(rows.shape[1:])[None] for value in constants.values()]
        return torch.cat([rows, *last]), [*labels, *constants]

    def _constant_logits(self, tokens: Any, pos_slice: Slice) -> dict[str, Tensor]:
        """Give what reaches the logits of tokens from elsewhere than the residual stream."""
        model: Any = self.model
        ids = model.to_single_token(tokens) if isinstance(tokens, str) else tokens
        ids = torch.as_tensor(ids, device=model.W_U.device)
        found: dict[str, Tensor] = {}
        _, norm_bias = self._gain_and_bias(model.cfg.n_layers, False)
        if norm_bias is not None:
            found["ln_bias"] = (norm_bias @ model.W_U)[ids]
        found["b_U"] = model.b_U[ids]
        if not model.sparsity.bigram_table:
            return found
        if "bigram.hook_out" not in self.cache_dict:
            raise ValueError(
                "The cache lacks bigram.hook_out, what the bigram table adds. Let names_filter take"
                ' it in and run the model with return_type="logits" (the default).'
            )
        added = pos_slice.apply(self["bigram.hook_out"], dim=-2)
        if ids.ndim and ids.shape != added.shape[:-1]:
            raise ValueError(
                "tokens are one token or one for each prompt and position in the cache, "
                f"{tuple(added.shape[:-1])}; got {tuple(ids.shape)}. For one position of each "
                "prompt give pos_slice, e.g. pos_slice=-1."
            )
        ids = ids.expand(added.shape[:-1])
        found["bigram"] = added.gather(-1, ids[..., None]).squeeze(-1)
        return found

    # -- small things -------------------------------------------------------------------------

    def _layer(self, layer: int | None) -> int:
        return self.model.cfg.n_layers if layer is None or layer == -1 else layer

    def _neuron_labels(self, layer: int) -> list[str]:
        return [f"L{i}N{n}" for i in range(layer) for n in range(self.model.cfg.d_mlp or 0)]

    def _kept(self, site: str, layer: int, pos_slice: Slice) -> Tensor | None:
        """Mark the channels that AbsTopK kept at attn_out or mlp_out; None if it keeps all."""
        topk: Any = getattr(self.model.blocks[layer], f"topk_{site}")
        if topk.n_kept == topk.width:
            return None
        return pos_slice.apply(self[site, layer], dim=-2) != 0

    def _masked(self, part: Tensor, site: str, layer: int, pos_slice: Slice) -> Tensor:
        mask = self._kept(site, layer, pos_slice)
        return part if mask is None else part * mask

    def _gain_and_bias(self, layer: int, mlp_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Give the gain and the bias of the norm before a layer; None where it has none."""
        model: Any = self.model
        if model.cfg.normalization_type is None:
            return None, None
        last = layer == model.cfg.n_layers
        norm = model.ln_final if last else getattr(model.blocks[layer], f"ln{1 + mlp_input}")
        return getattr(norm, "w", None), getattr(norm, "b", None)


def _slice(given: SliceLike) -> Slice:
    return given if isinstance(given, Slice) else Slice(given)
