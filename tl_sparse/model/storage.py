"""A model's ways in and out: our own folders, the hub, and the format of the released models."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

from tl_sparse.checkpoints import load_model_folder, save_model_folder
from tl_sparse.config import SparsityConfig
from tl_sparse.hub import card, fetch_folder, push_folder
from tl_sparse.masks import WeightMasks, kept_beyond_density, own_parameters
from tl_sparse.model.blocks import AttentionPath
from tl_sparse.released import read_released, write_released

_TRANSFORMER_LENS_NAMES = frozenset(OFFICIAL_MODEL_NAMES) | frozenset(
    alias for aliases in MODEL_ALIASES.values() for alias in aliases
)

Model = TypeVar("Model", bound="StoredTransformer")


class StoredTransformer(HookedTransformer):
    """What `HookedSparseTransformer` can do with files; abstract, it has no constructor."""

    sparsity: SparsityConfig
    weight_masks: WeightMasks
    attention: AttentionPath
    trained_on: tuple[str, ...] = ()
    """The hashes of the corpora that `train` saw, in order; saved with the model."""

    def save(self, folder: str | Path) -> None:
        """Write config, weights, masks and tokenizer to a folder, whole or not at all.

        Raises:
            ValueError: If the parameters are of another type than `cfg.dtype` says, or two names
                are one parameter.
            OSError: If the disk is full; what stood there is untouched.
        """
        parameters = own_parameters(self)
        for name, parameter in parameters.items():
            if parameter.dtype != self.cfg.dtype:
                raise ValueError(
                    f"{name} is {parameter.dtype} and cfg.dtype says {self.cfg.dtype}: the folder "
                    "could not be read again. Cast the whole model, model.to(dtype), which sets "
                    "cfg.dtype too."
                )
        save_model_folder(
            folder,
            cfg=self.cfg,
            sparsity=self.sparsity,
            attention=self.attention,
            parameters=parameters,
            masks=dict(self.weight_masks),
            tokenizer=self.tokenizer,
            trained_on=self.trained_on,
            masks_keep=self._masks_keep(),
        )

    def _masks_keep(self) -> Literal["exact", "fewer", "more"]:
        """Compare the masks with the densities, over all groups."""
        masks = self.weight_masks
        gaps = kept_beyond_density(masks.specs, masks, self.sparsity).values()
        return "more" if max(gaps) > 0 else "fewer" if min(gaps) < 0 else "exact"

    @classmethod
    def load(cls: type[Model], folder: str | Path, *, device: str | None = None) -> Model:
        """Read a model from a folder written by `save`; nothing is unpickled.

        Raises:
            ValueError: If the folder is missing, incomplete, damaged or disagrees with itself.
        """
        saved = load_model_folder(folder)
        saved.cfg.device = device or "cpu"
        saved.cfg.init_weights = False
        build: Any = cls  # the constructor is the subclass's
        model = build(
            saved.cfg,
            tokenizer=saved.tokenizer,
            sparsity=saved.sparsity,
            attention=saved.attention,
        )
        saved.check_against(dict(model.named_parameters()), dict(model.weight_masks))
        model._fill_(saved.parameters, saved.masks)
        if model._masks_keep() != saved.masks_keep:
            raise ValueError(
                f"{folder} does not match its config: beside what the densities say, its masks "
                f"keep {model._masks_keep()} entries, and config.json says {saved.masks_keep}."
            )
        model.trained_on = saved.trained_on
        return model

    @torch.no_grad()
    def _fill_(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Take over what was read from a folder, in place."""
        for name, parameter in self.named_parameters():
            parameter.copy_(parameters[name])
        for name, mask in masks.items():
            self.weight_masks.set_(name, mask.to(self.weight_masks[name].device))
        self.cfg.init_weights = True

    @classmethod
    def from_pretrained(
        cls: type[Model],
        model_name: str | Path,
        *args: Any,
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        **kwargs: Any,
    ) -> Model:
        """Give a model by folder, TransformerLens name or hub id, looked for in this order.

        A folder is one that `save` wrote; a TransformerLens name gives that model at density 1 and
        takes TransformerLens' arguments; a hub id is what `push_to_hub` made. `revision`, `token`
        and `endpoint` are for the hub, and `device` is for all three.

        Raises:
            ValueError: If there is no such model, its folder is damaged, or an argument does not
                apply.
        """
        is_folder = Path(model_name).is_dir()
        if not is_folder and str(model_name) in _TRANSFORMER_LENS_NAMES:
            given = {"revision": revision, "token": token}
            kwargs |= {name: value for name, value in given.items() if value is not None}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return super().from_pretrained(str(model_name), *args, **kwargs)
        device = kwargs.pop("device", None)
        if args or kwargs:
            raise ValueError(
                f"A saved model is loaded as it is; {', '.join(kwargs) or 'positional arguments'} "
                "would apply to TransformerLens' models only."
            )
        if not is_folder:
            hub = {"revision": revision, "token": token, "endpoint": endpoint}
            model_name = fetch_folder(str(model_name), **hub)
        return cls.load(model_name, device=device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a tl_sparse model",
        endpoint: str | None = None,
    ) -> str:
        """Upload the model as `save` writes it, with a card, and give the repository's address.

        Raises:
            ValueError: If `repo_id` is not a name that the hub allows.
            huggingface_hub.errors.HfHubHTTPError: If the hub refuses, e.g. without a token.
        """
        with TemporaryDirectory() as place:
            folder = Path(place) / "model"
            self.save(folder)
            (folder / "README.md").write_text(card(repo_id, repr(self)), encoding="utf-8")
            options = {"private": private, "token": token, "message": commit_message}
            return push_folder(folder, repo_id, endpoint=endpoint, **options)

    @classmethod
    def load_openai(
        cls: type[Model],
        folder: str | Path,
        *,
        tokenizer: Any = None,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> Model:
        """Read a model released with the paper: `beeg_config.json` and `final_model.pt`.

        It computes the same function. The weights that are zero are masked, and the densities are
        the smallest that all matrices obey. The tokenizer is the one given, or the one in
        `encoder.json` and `vocab.bpe` beside the model, or none. Nothing is unpickled.

        Raises:
            ValueError: If the folder is incomplete or damaged, or one of its options is unknown or
                can't be computed exactly (`tl_sparse.released`).
        """
        released = read_released(folder, dtype=dtype)
        cfg = HookedTransformerConfig.from_dict(released.cfg | {"device": device or "cpu"})
        cfg.init_weights = False
        chosen = released.tokenizer if tokenizer is None else tokenizer
        build: Any = cls
        model = build(cfg, tokenizer=chosen, sparsity=released.sparsity)
        nonzero = {name: released.parameters[name] != 0 for name in model.weight_masks}
        model._fill_(released.parameters, nonzero)
        return model

    def export_openai(self, folder: str | Path, *, with_tokenizer: bool = True) -> None:
        """Write the model in the format of the released ones, whole or not at all: the way back.

        Raises:
            ValueError: If the format can't express the model, or its tokenizer, exactly.
            OSError: If the disk is full; what stood there is untouched.
        """
        tokenizer = self.tokenizer if with_tokenizer else None
        parameters = dict(self.named_parameters())
        write_released(folder, self.cfg, self.sparsity, parameters, tokenizer)
