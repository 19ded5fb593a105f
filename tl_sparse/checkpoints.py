"""Models and training states on disk: safetensors and JSON, never pickle.

A model's folder holds `config.json` (shape, sparsity, versions), `model.safetensors` (parameters
under TransformerLens' names, masks as `mask/<name>`) and the tokenizer in `tokenizer/`. Folders are
written beside their place and renamed over it, so a crash or a full disk loses nothing.
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
from tl_sparse.files import recover_folder, whole_folder

FORMAT = 1


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
    """Write tensors to a safetensors file inside a folder that is not in place yet.

    Raises:
        OSError: If the disk is full.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(contiguous))  # our own write: a full disk is then a plain OSError


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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value)  # attn_scale is a numpy number
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
    except (TypeError, AssertionError) as error:
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
    tokenizer: Any

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
        for name, mask in self.masks.items():
            if bool((self.parameters[name][~mask] != 0).any()):
                raise ValueError(f"{self.folder}: {name} has weights outside its mask.")


def save_model_folder(
    folder: str | Path,
    *,
    cfg: HookedTransformerConfig,
    sparsity: SparsityConfig,
    attention: str,
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    tokenizer: Any = None,
) -> None:
    """Write a model's folder, whole or not at all.

    Raises:
        OSError: If the disk is full or the place can't be written; what stood there is untouched.
    """
    config = {
        "format": "tl_sparse.model",
        "format_version": FORMAT,
        "cfg": config_to_dict(cfg),
        "sparsity": sparsity.to_dict(),
        "attention": attention,
        "has_tokenizer": tokenizer is not None,
        "versions": versions(),
    }
    with whole_folder(folder) as place:
        (place / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        tensors = dict(parameters) | {f"mask/{name}": mask for name, mask in masks.items()}
        write_tensors(place / "model.safetensors", tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(place / "tokenizer")


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
    masks = {name[5:]: t for name, t in tensors.items() if name.startswith("mask/")}
    tokenizer = load_tokenizer(folder / "tokenizer") if config.get("has_tokenizer") else None
    try:
        return SavedModel(
            folder=folder,
            cfg=config_from_dict(config["cfg"]),
            sparsity=SparsityConfig.from_dict(config["sparsity"]),
            attention=config["attention"],
            parameters={name: t for name, t in tensors.items() if not name.startswith("mask/")},
            masks=masks,
            tokenizer=tokenizer,
        )
    except KeyError as error:
        raise ValueError(f"{folder}/config.json is damaged: no {error}.") from None


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer that `save_pretrained` wrote; no network, no code from the folder.

    Raises:
        ValueError: If it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"No tokenizer could be read from {folder}: {error}.") from None
