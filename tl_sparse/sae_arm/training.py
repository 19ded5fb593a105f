"""SAEs for all sites of a model, by SAELens' trainers.

`train_saes` trains one SAE for each residual read and write and each layer of neurons, all of one
architecture, width and L0:

1. windows of the training text go through the model, and the activations at the site's hook point
   are mixed, some hundred windows at a time,
2. `sae_lens`' `SAETrainer` learns an SAE of them: TopK, BatchTopK, JumpReLU or AbsTopK,
3. the SAE is saved in its form for inference, in SAELens' own files, into a folder named by the
   site, whole or not at all. Sites that the folder has are opened instead.

Everything depends on the settings' seed and the site alone, so that a run that was interrupted ends
as one that was not. The settings here that SAELens leaves to the user are those of the SAEs of
`docs/results/saes.md`, and so are the reasons.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from tl_sparse.ablation import fast_attention
from tl_sparse.checkpoints import read_json
from tl_sparse.circuit import Site
from tl_sparse.data import Corpus
from tl_sparse.files import whole_folder, write_text
from tl_sparse.model import HookedSparseTransformer
from tl_sparse.rules import (
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SEED,
    Rule,
    check_fields,
    checks_itself,
    choice,
    from_mapping,
    make_plain_,
)
from tl_sparse.sae_arm.splice import HASH
from tl_sparse.sites import CODER_PLACES, SiteInfo, model_hash, site_map

Architecture = Literal["topk", "batchtopk", "jumprelu", "abstopk"]

MIXED_WINDOWS = 256
"""Windows whose activations are mixed with one another."""

_SITES = Rule(
    f"is a tuple of some of {', '.join(CODER_PLACES)}",
    lambda v: isinstance(v, tuple | list) and bool(v) and all(name in CODER_PLACES for name in v),
)


@checks_itself
@dataclass(frozen=True, kw_only=True)
class SAESettings:
    """One set of SAEs: the same architecture, relative width and L0 at every site.

    Raises:
        ValueError: If a field is out of its range.
    """

    architecture: Architecture = "topk"
    """Which SAEs: "topk", "batchtopk" (for inference a JumpReLU with one threshold), "jumprelu" or
    "abstopk", whose latents can be negative."""

    expansion: int = 8
    """Latents for each channel of the site."""

    l0: int = 16
    """Latents that are on at a token: exactly (TopK, AbsTopK), on average (BatchTopK), or what a
    penalty aims at (JumpReLU)."""

    n_windows: int = 4_000
    """Windows of `cfg.n_ctx` tokens of the training text, each seen once; fewer if there are."""

    learning_rate: float = 3e-3
    """Of Adam; it decays over the last fifth."""

    batch_size: int = 1024
    """Tokens in a step."""

    sites: tuple[str, ...] = tuple(CODER_PLACES)
    """Where, in every layer: all of the sites that take an SAE, or some."""

    seed: int = 0
    """Seeds weights and order of the tokens."""

    def __post_init__(self) -> None:
        make_plain_(self)
        choice("topk", "batchtopk", "jumprelu", "abstopk").check("architecture", self.architecture)
        check_fields(self, POSITIVE_INTEGER, "expansion", "l0", "n_windows", "batch_size")
        check_fields(self, POSITIVE_NUMBER, "learning_rate")
        check_fields(self, SEED, "seed")
        _SITES.check("sites", self.sites)
        object.__setattr__(self, "sites", tuple(self.sites))

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SAESettings":
        """Build from `to_dict`'s values.

        Raises:
            ValueError: If a key is unknown or a value is out of range.
        """
        return from_mapping(cls, values)

    @property
    def name(self) -> str:
        """A short name, good for a folder; what is usual is not in it but for the first four."""
        usual, more = {f.name: f.default for f in fields(self)}, ""
        for short, field in (("w", "n_windows"), ("lr", "learning_rate"), ("b", "batch_size")):
            value = getattr(self, field)
            more += f"-{short}{value:g}" if value != usual[field] else ""
        if self.sites != usual["sites"]:
            more += "-" + "+".join(self.sites)
        return f"{self.architecture}-x{self.expansion}-l0-{self.l0}-seed{self.seed}{more}"


def train_saes(
    model: HookedSparseTransformer,
    corpus: Corpus,
    folder: str | Path,
    settings: SAESettings | None = None,
    *,
    progress: bool = True,
) -> dict[Site, Any]:
    """Train an SAE for every site that takes one, or open those that the folder has.

    Raises:
        ValueError: If the folder holds SAEs of other settings or of another model, if a site has
            fewer latents than are to be on or is zero throughout, or the text is too short.
    """
    settings, folder = settings or SAESettings(), Path(folder)
    infos = [info for info in site_map(model).sites if info.site.name in settings.sites]
    for info in infos:
        if settings.l0 > settings.expansion * info.width:
            raise ValueError(
                f"{info.site} would have {settings.expansion * info.width} latents, fewer than "
                f"l0={settings.l0} that are to be on."
            )
    own_hash = model_hash(model)
    asked = {
        "settings": settings.to_dict(),
        "sites": [str(info.site) for info in infos],
        "model": own_hash,
        "corpus": corpus.hash,
    }
    _check_folder(folder, asked)
    found = {}
    for info in tqdm(infos, desc=settings.name, disable=not progress):
        place = folder / str(info.site)
        if not place.is_dir():
            sae = train_sae(model, corpus, info, settings)
            sae.cfg.metadata[HASH] = own_hash
            with whole_folder(place) as temporary:
                sae.save_inference_model(temporary)
        found[info.site] = _load(place)
    return found


def load_saes(folder: str | Path) -> dict[Site, Any]:
    """Open the SAEs that `train_saes` left in a folder.

    Raises:
        ValueError: If there are none, or some of the sites that were asked for are missing.
    """
    folder = Path(folder)
    found = {
        Site.parse(place.name): _load(place)
        for place in sorted(folder.glob("*.*"))
        if place.is_dir() and not place.name.startswith(".")
    }
    missing = missing_sites(folder)
    if not found or missing is None:
        raise ValueError(f"There are no SAEs of train_saes in {folder}.")
    if missing:
        raise ValueError(
            f"{folder} has no SAE for {', '.join(missing)} yet. Go on with train_saes."
        )
    return dict(sorted(found.items(), key=lambda item: item[0].order))


def missing_sites(folder: str | Path) -> list[str] | None:
    """List the sites that a folder of `train_saes` has no SAE for yet; None if it is none.

    Raises:
        ValueError: If its settings are damaged.
    """
    noted = Path(folder) / "settings.json"
    if not noted.is_file():
        return None
    sites = read_json(noted).get("sites")
    if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites):
        raise ValueError(f"{noted} is damaged: it names no sites.")
    return [site for site in sites if not (noted.parent / site).is_dir()]


def _load(place: Path) -> Any:
    from sae_lens import SAE

    try:
        return SAE.load_from_disk(place)
    except Exception as error:  # whatever a damaged file leads SAELens to
        raise ValueError(f"The SAE in {place} is damaged: {error!r}. Train it again.") from None


def _check_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Write what is asked for into a new folder, or compare it with an old one."""
    path = folder / "settings.json"
    if path.is_file():
        noted = read_json(path)
        other = [key for key, value in asked.items() if noted.get(key) != value]
        if other:
            raise ValueError(
                f"{folder} holds SAEs of other {', '.join(other)}. Give another folder, or empty "
                "this one."
            )
        return
    write_text(path, json.dumps(asked, indent=1) + "\n")


def train_sae(
    model: HookedSparseTransformer, corpus: Corpus, info: SiteInfo, settings: SAESettings
) -> Any:
    """Train one SAE by SAELens' trainer, and give it in the trainer's form."""
    from sae_lens import TrainingSAE
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    n_ctx = model.cfg.n_ctx
    n_windows = min(settings.n_windows, corpus.train.windows_per_epoch(n_ctx))
    n_steps = max(1, n_windows * n_ctx // settings.batch_size)
    windows = corpus.train.batch(0, batch_size=n_windows, n_ctx=n_ctx, seed=settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        sae = TrainingSAE.from_dict(_sae_config(info, settings, model).to_dict())
        sae.cfg.metadata.hook_name = info.hook_name
        sae.cfg.metadata.model_name = "tl_sparse"
        sae.cfg.metadata.context_size = n_ctx
        sae.cfg.metadata.prepend_bos = False
        batches = activations(model, info, windows, settings.batch_size, seed=settings.seed)
        config = SAETrainerConfig(
            total_training_samples=n_steps * settings.batch_size,
            train_batch_size_samples=settings.batch_size,
            lr=settings.learning_rate,
            lr_end=settings.learning_rate / 10,
            lr_decay_steps=n_steps // 5,
            dead_feature_window=200,
            n_batches_for_norm_estimate=20,
            device=str(next(model.parameters()).device),
            logger=LoggingConfig(log_to_wandb=False),
        )
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # its bar can't be switched off
                return SAETrainer(config, sae, batches).fit()
        except ZeroDivisionError:  # it scales activations to a mean norm
            raise ValueError(
                f"{info.site} is zero at every token, and an SAE has nothing to learn there. Leave "
                "the site out, SAESettings(sites=...), or look at the weights that write to it."
            ) from None


def _sae_config(info: SiteInfo, settings: SAESettings, model: HookedSparseTransformer) -> Any:
    """Give SAELens' settings; see docs/results/saes.md for those of JumpReLU."""
    import sae_lens

    same: dict[str, Any] = {
        "d_in": info.width,
        "d_sae": settings.expansion * info.width,
        "normalize_activations": "expected_average_only_in",
        "device": str(next(model.parameters()).device),
    }
    if settings.architecture == "jumprelu":
        return sae_lens.JumpReLUTrainingSAEConfig(
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=settings.l0,
            jumprelu_init_threshold=0.2,
            jumprelu_bandwidth=0.5,
            **same,
        )
    config = {
        "topk": sae_lens.TopKTrainingSAEConfig,
        "batchtopk": sae_lens.BatchTopKTrainingSAEConfig,
        "abstopk": sae_lens.AbsTopKTrainingSAEConfig,
    }
    return config[settings.architecture](k=settings.l0, **same)


def activations(
    model: HookedSparseTransformer,
    info: SiteInfo,
    windows: Int[Tensor, "window pos"],
    batch_size: int,
    *,
    seed: int = 0,
) -> Iterator[Float[Tensor, "token channel"]]:
    """Give the activations at a site, in batches, mixed, over and over again."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    kept = torch.empty(0, info.width)
    while True:
        for some in windows.split(MIXED_WINDOWS):
            rows = torch.cat([_run(model, info, part.to(device)) for part in some.split(32)])
            order = torch.randperm(len(rows), generator=generator).to(device)
            kept = torch.cat([kept.to(rows), rows[order]])
            while len(kept) >= batch_size:
                yield kept[:batch_size]
                kept = kept[batch_size:]


@torch.no_grad()
def _run(
    model: HookedSparseTransformer, info: SiteInfo, tokens: Int[Tensor, "window pos"]
) -> Float[Tensor, "token channel"]:
    found: list[Any] = []
    note = model.hook_dict[info.hook_name].register_forward_hook(
        lambda module, inputs, activation: found.append(activation)
    )
    try:
        with fast_attention(model):
            model(tokens, return_type=None, stop_at_layer=info.site.layer + 1)
    finally:
        note.remove()
    return found[0].float().flatten(0, -2)
