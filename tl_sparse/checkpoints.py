"""Models and training states on disk: safetensors and JSON, never pickle.

A model's folder holds `config.json` (shape, sparsity, versions, hashes of the training data),
`model.safetensors` (parameters
under TransformerLens' names) and the tokenizer in `tokenizer/`. A parameter whose mask has gaps is
stored as `<name>/indices`, the kept places in the flattened tensor, and `<name>/values`: 8 bytes
for a float32 weight that is kept and none for one that is not. Folders are written beside their
place and renamed over it, so a crash or a full disk loses nothing.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from tl_sparse.config import SparsityConfig
from tl_sparse.files import recover_folder, whole_folder, write_bytes
from tl_sparse.rules import plain

FORMAT = 3

HALVED_FROM = 2**16
"""Entries of the smallest tensor that is looked at for what half precision can hold."""


def versions() -> dict[str, str]:
    """Give the versions of what a result depends on, for provenance."""
    packages = ("tl-sparse", "torch", "transformer-lens", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            found[package] = "unknown"
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Raises:
        OSError: If the disk is full or the place can't be written; what stood there is untouched.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous))  # our own write: a full disk is then a plain OSError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: If it is missing, was cut short or is no safetensors file.
    """
    if not path.is_file():
        raise ValueError(f"There is no {path.name} in {path.parent}: not a whole folder of ours.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut short: {error}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: If it is missing or not a whole JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: not a JSON object.")
    return data


def config_to_dict(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """Give a HookedTransformerConfig as plain JSON values, `device` left out."""
    values = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.init and f.name != "device"}
    return {name: _plain(name, value) for name, value in values.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    value = plain(value)  # attn_scale is a numpy number
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise ValueError(f"cfg.{name} can't be kept in JSON: {value!r}.")


def config_from_dict(values: Mapping[str, Any]) -> HookedTransformerConfig:
    """Build a HookedTransformerConfig from `config_to_dict`'s values, leaving random states alone.

    Raises:
        ValueError: If there is a key that this TransformerLens does not know.
    """
    known = {f.name for f in fields(HookedTransformerConfig)}
    unknown = {name for name, value in values.items() if name not in known and value is not None}
    unknown = {name for name in unknown if values[name] not in (False, [])}
    if unknown:
        raise ValueError(
            f"The config has {', '.join(sorted(unknown))}, unknown to TransformerLens "
            f"{version('transformer-lens')}; it was written with another version."
        )
    values = {name: value for name, value in values.items() if name in known}
    seed = values.pop("seed", None)  # given to the constructor it would reseed the whole process
    if isinstance(values.get("dtype"), str):
        values["dtype"] = getattr(torch, values["dtype"])
    try:
        cfg = HookedTransformerConfig(**values)
    except (TypeError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"The config does not describe a model: {error}.") from None
    cfg.seed = seed
    return cfg


@dataclass(frozen=True)
class SavedModel:
    """What a model's folder holds."""

    folder: Path
    cfg: HookedTransformerConfig
    sparsity: SparsityConfig
    attention: Any
    parameters: dict[str, Tensor]
    masks: dict[str, Tensor]
    """The masks that have gaps."""
    tokenizer: Any
    trained_on: tuple[str, ...]
    """The hashes of the corpora that the model was trained on, in order."""
    masks_keep: str
    """How many entries the masks keep beside what the densities say: "exact", "more" (saved while
    annealing) or "fewer" (made from the zeros of a released model)."""

    def check_against(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Check that the tensors are those of the model that the config describes.

        Raises:
            ValueError: If one is missing, extra, of the wrong shape, not finite, or a weight lives
                outside its mask.
        """
        for what, have, want in (
            ("parameter", self.parameters, parameters),
            ("mask", self.masks, masks),
        ):
            missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
            missing = [] if what == "mask" else missing  # a mask without gaps is not stored
            if missing or extra:
                raise ValueError(
                    f"{self.folder} does not match its config: {what}s missing: "
                    f"{missing or 'none'}, extra: {extra or 'none'}."
                )
            for name, tensor in have.items():
                if tensor.shape != want[name].shape or tensor.dtype != want[name].dtype:
                    raise ValueError(
                        f"{self.folder}: {what} {name} is {tuple(tensor.shape)} {tensor.dtype}, "
                        f"the config says {tuple(want[name].shape)} {want[name].dtype}."
                    )
        for name, tensor in self.parameters.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{self.folder}: {name} has NaN or infinite entries.")


def save_model_folder(
    folder: str | Path,
    *,
    cfg: HookedTransformerConfig,
    sparsity: SparsityConfig,
    attention: str,
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    tokenizer: Any = None,
    trained_on: tuple[str, ...] = (),
    masks_keep: str = "exact",
) -> None:
    """Write a model's folder, whole or not at all.

    Raises:
        ValueError: If a weight outside its mask is not zero: it would be lost.
        OSError: If the disk is full or the place can't be written; what stood there is untouched.
    """
    tensors, masked = _pack(parameters, masks)
    halved = _halve_(tensors)
    config = {
        "format": "tl_sparse.model",
        "format_version": FORMAT,
        "cfg": config_to_dict(cfg),
        "sparsity": sparsity.to_dict(),
        "attention": attention,
        "has_tokenizer": tokenizer is not None,
        "masked": masked,
        "in_half": halved,
        "masks_keep": masks_keep,
        "trained_on": list(trained_on),
        "versions": versions(),
    }
    with whole_folder(folder) as place:
        (place / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        write_tensors(place / "model.safetensors", tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(place / "tokenizer")


def _pack(
    parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give the tensors to store, and shape and number of kept entries of those stored sparsely."""
    tensors: dict[str, Tensor] = {}
    masked: dict[str, Any] = {}
    for name, parameter in parameters.items():
        mask, parameter = masks.get(name), parameter.detach()
        if mask is None or bool(mask.all()):
            tensors[name] = parameter
            continue
        outside = int((parameter[~mask] != 0).sum())
        if outside:
            raise ValueError(
                f"{name} has {outside} weights outside its mask, which would be lost. Call "
                "project_() to choose the masks anew, or apply_masks_() to zero them, then save."
            )
        kept = mask.flatten().nonzero().flatten()
        indices = torch.int32 if mask.numel() < 2**31 else torch.int64
        tensors[f"{name}/indices"] = kept.to(indices)
        tensors[f"{name}/values"] = parameter.flatten()[kept]
        masked[name] = {"shape": list(parameter.shape), "n_kept": len(kept)}
    return tensors, masked


def _halve_(tensors: dict[str, Tensor]) -> list[str]:
    """Store large tensors in half precision, in place, where that loses nothing; name them.

    Of a model whose bigram table was rounded, to be small.
    """
    halved = []
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and tensor.numel() >= HALVED_FROM:
            half = tensor.half()
            if torch.equal(half.float(), tensor):
                tensors[name] = half
                halved.append(name)
    return halved


def _unpack(
    folder: Path, tensors: dict[str, Tensor], masked: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give parameters and masks of the stored tensors; refuse what disagrees with the config."""
    parameters, masks = dict(tensors), {}
    for name, entry in masked.items():
        shape, n_kept = tuple(entry["shape"]), entry["n_kept"]
        size = torch.Size(shape).numel()
        try:
            indices = parameters.pop(f"{name}/indices")
            values = parameters.pop(f"{name}/values")
        except KeyError as error:
            raise ValueError(f"{folder}: model.safetensors has no {error}.") from None
        kept = indices.long()
        inside = not len(kept) or (
            kept[0] >= 0 and kept[-1] < size and bool((kept.diff() > 0).all())
        )
        if (
            indices.dtype not in (torch.int32, torch.int64)
            or indices.shape != (n_kept,)
            or values.shape != (n_kept,)
            or not inside
        ):
            raise ValueError(
                f"{folder}: the mask of {name} disagrees with the config, {n_kept} kept entries of "
                f"a tensor of shape {shape}."
            )
        flat = values.new_zeros(size)
        flat[kept] = values
        mask = torch.zeros(size, dtype=torch.bool)
        mask[kept] = True
        parameters[name], masks[name] = flat.reshape(shape), mask.reshape(shape)
    return parameters, masks


@dataclass(frozen=True)
class StoredBytes:
    """What the weights of a saved model take on disk, in bytes."""

    masked: int
    """Of the parameters that are stored sparsely."""
    masked_if_dense: int
    """What those would take as plain tensors."""
    dense: int
    """Of everything else, the bigram table before all."""

    def __str__(self) -> str:
        """One line for people."""
        share = f" ({self.masked / self.masked_if_dense:.1%} of" if self.masked_if_dense else " (of"
        return (
            f"stored: {(self.masked + self.dense) / 1e6:.2f} MB; masked matrices "
            f"{self.masked / 1e6:.2f} MB{share} {self.masked_if_dense / 1e6:.2f} MB dense), the "
            f"rest {self.dense / 1e6:.2f} MB"
        )


def stored_bytes(folder: str | Path) -> StoredBytes:
    """Measure a model's folder.

    Raises:
        ValueError: If the folder is incomplete or damaged.
    """
    saved = load_model_folder(folder)
    full = sum(saved.parameters[name].nbytes for name in saved.masks)
    tensors = read_tensors(Path(folder) / "model.safetensors")
    masked = sum(t.nbytes for n, t in tensors.items() if n.endswith(("/indices", "/values")))
    return StoredBytes(masked, full, sum(t.nbytes for t in tensors.values()) - masked)


def load_model_folder(folder: str | Path) -> SavedModel:
    """Read a model's folder; nothing in it is executed.

    Raises:
        ValueError: If the folder is missing, incomplete or damaged.
    """
    folder = Path(folder)
    recover_folder(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder} to load a model from.")
    config = read_json(folder / "config.json")
    if config.get("format") != "tl_sparse.model" or config.get("format_version") != FORMAT:
        raise ValueError(
            f"{folder}/config.json is not a tl_sparse model of format {FORMAT}: it says "
            f"{config.get('format')!r}, {config.get('format_version')!r}."
        )
    tensors = read_tensors(folder / "model.safetensors")
    tokenizer = load_tokenizer(folder / "tokenizer") if config.get("has_tokenizer") else None
    try:
        halved = [name for name in config.get("in_half", []) if name in tensors]
        tensors |= {name: tensors[name].float() for name in halved}
        parameters, masks = _unpack(folder, tensors, config["masked"])
        cfg = config_from_dict(config["cfg"])
        # The host would look for a tokenizer by this name, and run code that comes with it.
        cfg.trust_remote_code = False
        cfg.tokenizer_name = None if tokenizer is None else cfg.tokenizer_name
        return SavedModel(
            folder=folder,
            cfg=cfg,
            sparsity=SparsityConfig.from_dict(config["sparsity"]),
            attention=config["attention"],
            parameters=parameters,
            masks=masks,
            tokenizer=tokenizer,
            trained_on=tuple(map(str, config["trained_on"])),
            masks_keep=config["masks_keep"],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder}/config.json is damaged: {error!r}.") from None


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer that `save_pretrained` wrote; no network, no code from the folder.

    Raises:
        ValueError: If it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file leads transformers to
        raise ValueError(f"No tokenizer could be read from {folder}: {error!r}.") from None
