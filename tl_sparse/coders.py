"""An SAE at a site: its latents and its error in the place of the site's channels.

With activation x, encoder E, decoder D and their biases, at each token:

1. h = x E + b_E, the latents' pre-activations; z = sigma(h), sigma being TopK, AbsTopK, ReLU or
   JumpReLU,
2. e = x - (z D + b_D), what the SAE leaves out, made anew from the x that is there: the **error**,
3. the **nodes** [z | e] pass a hook point, where each latent is a node of its own and the error,
   all of its entries together, is one,
4. the site gives z D + b_D + e on. With every node as it is, that is x to rounding.

Gates act at the hook point. For single edges a coder has two more ways to run, in which virtual
weights stand in the model's (`tl_sparse.coded_edges`): it can be given [h | x] in place of x, each
target's own view of its sources, and it can give its nodes on in place of their sum.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from tl_sparse.functional import abs_topk

Activation = Literal["topk", "abstopk", "relu", "jumprelu"]

View = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From x and h to the pre-activations, and the x that the error sees, under cut edges."""


class Coder(nn.Module):
    """Encode, show the nodes, decode; `before` is run first: the model's own AbsTopK there.

    `errors=False` leaves the error out of the sum and out of the nodes: SAELens' splice.
    """

    def __init__(
        self,
        *,
        encoder: Float[Tensor, "channel latent"],
        encoder_bias: Float[Tensor, " latent"],
        decoder: Float[Tensor, "latent channel"],
        decoder_bias: Float[Tensor, " channel"],
        activation: Activation,
        k: int | None = None,
        threshold: Float[Tensor, " latent"] | None = None,
        errors: bool = True,
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # No W_ in the names: neither the host nor the audit's controls are to draw them anew.
        self.encoder, self.encoder_bias = nn.Parameter(encoder), nn.Parameter(encoder_bias)
        self.decoder, self.decoder_bias = nn.Parameter(decoder), nn.Parameter(decoder_bias)
        self.threshold = None if threshold is None else nn.Parameter(threshold)
        self.activation, self.k, self.errors = activation, k, errors
        self.before = nn.Identity() if before is None else before
        self.hook_nodes = HookPoint()  # [batch, pos, latent, and channel if there are errors]
        self.wide_in = self.wide_out = False
        self.view: View | None = None

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.encoder.shape[1]

    @property
    def n_error(self) -> int:
        """Number of entries of the error: the site's channels, or 0 without errors."""
        return self.encoder.shape[0] if self.errors else 0

    @property
    def n_entries(self) -> int:
        """Number of entries that the hook point shows."""
        return self.n_latents + self.n_error

    def forward(self, x: Float[Tensor, "... given"]) -> Float[Tensor, "... passed_on"]:
        """Give what the nodes add up to; `wide_in` and `wide_out` change what is given."""
        if self.wide_in:
            h, seen = x[..., : self.n_latents], x[..., self.n_latents :]
            latents = self.activate(h)
            nodes = self._beside(latents, seen, self.encode(seen) if self.errors else latents)
        else:
            x = self.before(x)
            h, seen = x @ self.encoder + self.encoder_bias, x
            if self.view is None:
                latents = whole = self.activate(h)
            else:
                h, seen = self.view(x, h)
                latents, whole = self.activate(h), self.encode(seen)
            nodes = self._beside(latents, seen, whole)
        nodes = self.hook_nodes(nodes)
        return nodes if self.wide_out else self.decode(nodes)

    def _beside(self, latents: Tensor, seen: Tensor, latents_of_seen: Tensor) -> Tensor:
        """Put the error of what it sees behind the latents."""
        if not self.errors:
            return latents
        error = seen - (latents_of_seen @ self.decoder + self.decoder_bias)
        return torch.cat([latents, error], dim=-1)

    def encode(self, x: Float[Tensor, "... channel"]) -> Float[Tensor, "... latent"]:
        """Give the latents of an activation."""
        return self.activate(x @ self.encoder + self.encoder_bias)

    def decode(self, nodes: Float[Tensor, "... entry"]) -> Float[Tensor, "... channel"]:
        """Add up latents and, if there is one, the error."""
        latents = nodes[..., : self.n_latents]
        x = latents @ self.decoder + self.decoder_bias
        return x + nodes[..., self.n_latents :] if self.errors else x

    def activate(self, h: Float[Tensor, "... latent"]) -> Float[Tensor, "... latent"]:
        """Give the latents of their pre-activations."""
        if self.activation == "relu":
            return h.relu()
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return h.relu() * (h > self.threshold).to(h.dtype)
        assert self.k is not None  # what topk keeps below zero its ReLU makes zero
        return abs_topk(h if self.activation == "abstopk" else h.relu(), self.k)

    # -- as virtual weights -----------------------------------------------------------------------

    def as_source(self) -> Float[Tensor, "entry channel"]:
        """Give what each entry of the nodes adds to the activation: decoder, and identity."""
        decoder = self.decoder.detach()
        if not self.errors:
            return decoder
        return torch.cat([decoder, torch.eye(self.n_error).to(decoder)])

    def as_target(self) -> Float[Tensor, "channel entry"]:
        """Give what each entry of [h | x] sees of the activation: encoder, and identity."""
        encoder = self.encoder.detach()
        if not self.errors:
            return encoder
        return torch.cat([encoder, torch.eye(self.n_error).to(encoder)], dim=1)

    def target_bias(self, bias: Float[Tensor, " channel"]) -> Float[Tensor, " entry"]:
        """Give what a constant part of the activation, and the encoder's bias, add to [h | x]."""
        latents = bias @ self.encoder.detach() + self.encoder_bias.detach()
        return torch.cat([latents, bias]) if self.errors else latents

    @property
    def settings(self) -> str:
        """What makes the coder another one with the same parameters; for hashes."""
        return f"{self.activation} {self.k} {self.errors}"

    def extra_repr(self) -> str:
        """Show the size and the kind."""
        return self.words

    @property
    def words(self) -> str:
        """The size and the kind, in words."""
        k = "" if self.k is None else f", {self.k} of them on"
        return f"{self.n_latents} {self.activation} latents{k}{', error' * self.errors}"
