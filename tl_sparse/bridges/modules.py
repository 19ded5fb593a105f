"""The bridges themselves: two linear maps at each site, on disk as safetensors and JSON.

Site 2l is `blocks.l.hook_resid_pre`, what the attention of layer l reads, and site 2l + 1 is
`blocks.l.hook_resid_mid`, what its MLP reads; site 0 is the embedding. With h_d and h_s the dense
and the sparse residual stream there,

    encoder  h_d -> AbsTopK(h_d W_enc + b_enc)        decoder  h_s -> h_s W_dec + b_dec

so a bridge is a sparse autoencoder whose latents are the sparse model's residual channels. The
biases are ours: the paper says "linear". Decoders are drawn from N(0, 0.02), as the models' own
weights, and encoders from N(0, 0.02 / sqrt(d_dense)), so that what they make is about as large as
the residual stream of a fresh sparse model.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from tl_sparse.checkpoints import read_json, read_tensors, versions, write_tensors
from tl_sparse.config import BridgeConfig
from tl_sparse.files import recover_folder, whole_folder
from tl_sparse.layers import AbsTopK
from tl_sparse.sites import model_hash

FORMAT = 1


class Bridge(nn.Module):
    """The encoder and the decoder of one site."""

    def __init__(self, d_dense: int, d_sparse: int, density: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.empty(d_dense, d_sparse, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(d_sparse, dtype=dtype))
        self.W_dec = nn.Parameter(torch.empty(d_sparse, d_dense, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_dense, dtype=dtype))
        self.topk = AbsTopK(density, d_sparse)

    def encode(self, dense: Float[Tensor, "batch pos d_dense"]) -> Float[Tensor, "batch pos _"]:
        """Make a sparse model's residual stream of a dense model's."""
        return self.topk(dense @ self.W_enc + self.b_enc)

    def decode(self, sparse: Float[Tensor, "batch pos d_sparse"]) -> Float[Tensor, "batch pos _"]:
        """Make a dense model's residual stream of a sparse model's."""
        return sparse @ self.W_dec + self.b_dec


class Bridges(nn.Module):
    """One bridge for each residual site of two models of the same depth; `bridges[i]` is site i's.

    Raises:
        ValueError: If the encoders' density keeps no channel.

    Examples:
        >>> bridges = Bridges(n_layers=2, d_dense=8, d_sparse=32)
        >>> len(bridges), bridges[3].encode(torch.zeros(1, 5, 8)).shape
        (4, torch.Size([1, 5, 32]))
    """

    rms_dense: Tensor
    rms_sparse: Tensor

    def __init__(
        self,
        *,
        n_layers: int,
        d_dense: int,
        d_sparse: int,
        config: BridgeConfig | None = None,
        dtype: torch.dtype = torch.float32,
        dense_hash: str | None = None,
    ) -> None:
        super().__init__()
        self.config = BridgeConfig() if config is None else config
        self.n_layers, self.d_dense, self.d_sparse = n_layers, d_dense, d_sparse
        self.dense_hash = dense_hash
        """`sites.model_hash` of the dense model; None for bridges that know none."""
        density = self.config.encoder_density
        self.sites = nn.ModuleList(
            Bridge(d_dense, d_sparse, density, dtype) for _ in range(2 * n_layers)
        )
        unknown = torch.full((2 * n_layers,), float("nan"), dtype=dtype)
        self.register_buffer("rms_dense", unknown)
        self.register_buffer("rms_sparse", unknown.clone())
        self.init_weights()

    @classmethod
    def between(
        cls,
        dense: HookedTransformer,
        sparse: HookedTransformer,
        config: BridgeConfig | None = None,
    ) -> "Bridges":
        """Make fresh bridges for two models, on their device and in their precision."""
        bridges = cls(
            n_layers=dense.cfg.n_layers,
            d_dense=dense.cfg.d_model,
            d_sparse=sparse.cfg.d_model,
            config=config,
            dtype=next(dense.parameters()).dtype,
            dense_hash=model_hash(dense),
        )
        return bridges.to(next(dense.parameters()).device)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights by the config's seed and zero the biases, in place."""
        generator = torch.Generator().manual_seed(self.config.seed)
        for name, parameter in self.named_parameters():
            if "W_" in name:
                # Larger encoders would begin with an error of many times what they are to make.
                std = 0.02 / math.sqrt(self.d_dense) if "W_enc" in name else 0.02
                drawn = torch.empty(parameter.shape).normal_(std=std, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.zero_()

    def __len__(self) -> int:
        """Give the number of sites."""
        return len(self.sites)

    def __getitem__(self, site: int) -> Bridge:
        """Give the bridge of a site."""
        bridge = self.sites[site]
        assert isinstance(bridge, Bridge)
        return bridge

    def __repr__(self) -> str:
        """One line."""
        kept = self[0].topk.n_kept
        return (
            f"Bridges({len(self)} sites, d_dense {self.d_dense}, d_sparse {self.d_sparse}, encoders"
            f" keep {kept} of {self.d_sparse})"
        )

    def check(self, dense: HookedTransformer, sparse: HookedTransformer) -> None:
        """Check that they join these two models.

        Raises:
            ValueError: If depth or widths differ, or the dense model is not the one that they were
                trained with.
        """
        mine = (self.n_layers, self.d_dense, self.n_layers, self.d_sparse)
        theirs = tuple(n for m in (dense, sparse) for n in (m.cfg.n_layers, m.cfg.d_model))
        if mine != theirs:
            raise ValueError(
                f"These bridges join models of {self.n_layers} layers, the dense one of width "
                f"{self.d_dense}, the sparse one of width {self.d_sparse}; given are a dense one of"
                f" {theirs[0]} layers and width {theirs[1]} and a sparse one of {theirs[2]} layers "
                f"and width {theirs[3]}."
            )
        if self.dense_hash not in (None, model_hash(dense)):
            raise ValueError(
                "These bridges were trained with another dense model, or its weights have changed "
                "since. Give the one that train_bridged was given."
            )

    @torch.no_grad()
    def note_sizes_(self, mean_squares: Float[Tensor, "2 site"]) -> None:
        """Note how large the entries of both residual streams are at each site, in place.

        `BridgeLosses.mean_squares` of some reference text: `train_bridged` takes the validation
        windows. Steering needs it.
        """
        self.rms_dense.copy_(mean_squares[0].sqrt())
        self.rms_sparse.copy_(mean_squares[1].sqrt())

    # -- files ----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write weights and config to a folder, whole or not at all.

        Raises:
            OSError: If the disk is full; what stood there is untouched.
        """
        config = {
            "format": "tl_sparse.bridges",
            "format_version": FORMAT,
            "n_layers": self.n_layers,
            "d_dense": self.d_dense,
            "d_sparse": self.d_sparse,
            "dtype": str(self[0].W_enc.dtype).removeprefix("torch."),
            "config": self.config.to_dict(),
            "dense_hash": self.dense_hash,
            "versions": versions(),
        }
        with whole_folder(folder) as place:
            (place / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
            write_tensors(place / "bridges.safetensors", self.state_dict())

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> "Bridges":
        """Read bridges from a folder written by `save`; nothing is unpickled.

        Raises:
            ValueError: If the folder is missing, incomplete, damaged or disagrees with itself.
        """
        folder = Path(folder)
        recover_folder(folder)
        values = read_json(folder / "config.json")
        if (values.get("format"), values.get("format_version")) != ("tl_sparse.bridges", FORMAT):
            raise ValueError(
                f"{folder}/config.json is not of bridges of format {FORMAT}: it says "
                f"{values.get('format')!r}, {values.get('format_version')!r}."
            )
        try:
            bridges = cls(
                n_layers=values["n_layers"],
                d_dense=values["d_dense"],
                d_sparse=values["d_sparse"],
                config=BridgeConfig.from_dict(values["config"]),
                dtype=getattr(torch, values["dtype"]),
                dense_hash=values["dense_hash"],
            )
        except (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"{folder}/config.json is damaged: {error!r}.") from None
        bridges.fill_(read_tensors(folder / "bridges.safetensors"), folder)
        return bridges.to(device)

    @torch.no_grad()
    def fill_(self, tensors: Mapping[str, Tensor], folder: Any) -> None:
        """Take over what was read from a folder, in place.

        Raises:
            ValueError: If a tensor is missing, extra, or of another shape or type.
        """
        wanted = self.state_dict()
        have = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        want = {name: (tuple(t.shape), t.dtype) for name, t in wanted.items()}
        if have != want:
            differing = sorted(n for n in have | want if have.get(n) != want.get(n))
            raise ValueError(
                f"{folder} holds bridges of another shape: {', '.join(differing[:4])} do not match."
            )
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
