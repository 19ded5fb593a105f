"""`tl-sparse train`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_sparse.cli.completing import PRECISIONS, TRAIN_PRESETS, one_of
from tl_sparse.cli.failing import if_stopped
from tl_sparse.cli.opening import AsJson, CorpusCache, Device, Quiet, check_folder, device_of
from tl_sparse.cli.settings import ConfigFile, asked
from tl_sparse.cli.speaking import note, say, say_json, then
from tl_sparse.rules import checks_itself

if TYPE_CHECKING:
    from tl_sparse.data import Corpus
    from tl_sparse.presets import Recipe

WORSE = 0.1
"""Nats above the lowest validation loss at which a run is said to have gone on for too long."""

SETTINGS = "settings.json"
"""The file in a run's folder that says what was asked for."""

PRESETS = "the preset's"
"""What the help says where a preset has the default."""


@if_stopped(
    "Stopped. What was done is kept in {out}; the same command goes on. What there is by now can "
    "be used: tl-sparse tasks --model {out}"
)
@checks_itself
def train(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option(help="The run's folder: settings, log, model. Run again to go on.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file or folder of text, or a dataset saved by `datasets`; may be given again. "
            "Default: Python of the standard library, and generated.",
        ),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Which files of a folder, e.g. '**/*.txt'.")
    ] = None,
    column: Annotated[str, typer.Option(help="A dataset's column of text.")] = "text",
    preset: Annotated[
        str,
        typer.Option(
            help="Size of model and training: tiny (a look), demo (minutes), gpu (for one GPU).",
            autocompletion=one_of(TRAIN_PRESETS),
        ),
    ] = "demo",
    layers: Annotated[int | None, typer.Option(min=1, help="Layers.", show_default=PRESETS)] = None,
    width: Annotated[int | None, typer.Option(min=1, help="d_model.", show_default=PRESETS)] = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens read at a time.", show_default=PRESETS)
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(help="Tokens of the tokenizer.", show_default=PRESETS)
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Fraction of weights kept, in (0, 1].", show_default=PRESETS),
    ] = None,
    activation_density: Annotated[
        float | None,
        typer.Option(help="Fraction of channels that AbsTopK keeps.", show_default=PRESETS),
    ] = None,
    bigram: Annotated[bool, typer.Option(help="A dense bigram table beside the model.")] = True,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to train on in all.", show_default=PRESETS)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences in a step.", show_default=PRESETS)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Its peak.", show_default=PRESETS)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, bf16 or fp16.",
            show_default=PRESETS,
            autocompletion=one_of(PRECISIONS),
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the model and of the order of the data.")
    ] = 0,
    device: Device = "cpu",
    corpus_cache: CorpusCache = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a sparse model on your text, or on Python.

    Weights beyond the density are zero after every step; gradients stay dense, so that zeroed ones
    can come back. A tokenizer is trained on the text first. OUT/settings.json keeps what was asked
    for and is itself a --config. For a dense model: --density 1 --activation-density 1
    --learning-rate 0.003.

    Ctrl-C keeps a checkpoint, and the same command goes on from it.

    For example:

    - `tl-sparse train --text my.txt --out my-model --preset tiny`
    - `tl-sparse train --text src --text docs --out my-model --width 256 --density 0.01`
    - `tl-sparse train --config my-model/settings.json`
    """
    recipe = _recipe(
        preset, seed=seed, bigram=bigram, layers=layers, width=width, context=context, vocab=vocab,
        density=density, activation_density=activation_density, tokens=tokens,
        batch_size=batch_size, learning_rate=learning_rate, precision=precision,
    )  # fmt: skip
    device = device_of(device)
    settings = _settings(asked(ctx), recipe)
    _check_run(out, settings)
    corpus = _text(text, recipe, pattern, column, corpus_cache, progress=not quiet)
    _keep(out, settings)
    result = _run(recipe, corpus, out, device=device, progress=not quiet)
    if as_json:
        say_json(result | {"settings": settings["train"]})
        return
    say(result["summary"])
    say(
        f"Trained on {result['n_tokens']:,} tokens, {result['passes']:.1f} times the text; "
        f"validation loss {result['validation_loss']:.3f} nats a token. The model is "
        f"{result['model']}."
    )
    if result["validation_loss"] > result["lowest"]["validation_loss"] + WORSE:
        note(
            f"The validation loss was {result['lowest']['validation_loss']:.3f} at "
            f"{result['lowest']['tokens']:,} tokens and rose since: the text is small for so much "
            "training. Take more text or fewer --tokens."
        )
    then(f"tl-sparse tasks --model {out}, then tl-sparse prune {out} TASK")


def _recipe(preset: str, *, seed: int, bigram: bool, **flags: Any) -> "Recipe":
    """Give a preset with the flags that were given in place of its own values."""
    from tl_sparse.presets import RECIPES

    if preset not in RECIPES:
        raise ValueError(f"A preset is one of {', '.join(RECIPES)}; got {preset!r}.")

    def given(**names: str) -> dict[str, Any]:
        return {field: flags[flag] for field, flag in names.items() if flags[flag] is not None}

    begin = RECIPES[preset]
    sparsity = given(weight_density="density", activation_density="activation_density")
    training = given(
        n_tokens="tokens", batch_size="batch_size", learning_rate="learning_rate",
        precision="precision",
    )  # fmt: skip
    return replace(
        begin,
        sparsity=replace(begin.sparsity, bigram_table=bigram, **sparsity),
        training=replace(begin.training, seed=seed, **training),
        **given(n_layers="layers", width="width", n_ctx="context", vocab_size="vocab"),
    )


def _settings(begin: dict[str, Any], recipe: "Recipe") -> dict[str, Any]:
    """Give what was asked for with the preset's values written out."""
    training, sparsity = recipe.training, recipe.sparsity
    whole = begin["train"] | {
        "layers": recipe.n_layers, "width": recipe.width, "context": recipe.n_ctx,
        "vocab": recipe.vocab_size, "density": sparsity.weight_density,
        "activation_density": sparsity.site_density("attn_in"), "tokens": training.n_tokens,
        "batch_size": training.batch_size, "learning_rate": training.learning_rate,
        "precision": training.precision,
    }  # fmt: skip
    return {"train": whole}


_MAY_CHANGE = frozenset({"out", "device", "corpus_cache", "preset", "text"})
"""Flags that don't decide what is trained; a text is known by its content, which `train` checks."""


def _check_run(out: Path, settings: dict[str, Any]) -> None:
    """Check that a folder is free for a run, or holds this one.

    Raises:
        ValueError: If it holds something else.
        OSError: If it can't be written.
    """
    from tl_sparse.checkpoints import read_json

    check_folder(out)
    kept = out / SETTINGS
    if kept.is_file():
        theirs, mine = read_json(kept).get("train"), settings["train"]
        if not isinstance(theirs, dict):
            raise ValueError(f"{kept} holds no settings of a training run. Give another --out.")
        other = [f for f in mine if f not in _MAY_CHANGE and theirs.get(f) != mine[f]]
        if other:
            flags = ", ".join(
                f"--{flag.replace('_', '-')} ({theirs.get(flag)} there, {mine[flag]} now)"
                for flag in other
            )
            raise ValueError(
                f"{out} holds a model with another {flags}. Give another --out, or go on with "
                f"tl-sparse train --config {kept}."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} is not empty and holds no run of tl-sparse train. Give a new folder as --out."
        )


def _text(
    paths: list[Path] | None,
    recipe: "Recipe",
    pattern: str | None,
    column: str,
    cache: Path | None,
    *,
    progress: bool,
) -> "Corpus":
    """Tokenise the text, or open the tokens that an earlier run made."""
    from tl_sparse import data

    about: dict[str, Any] = {
        "vocab_size": recipe.vocab_size, "cache_dir": cache, "progress": progress
    }  # fmt: skip
    if not paths:
        about |= {"n_characters": recipe.n_characters, "library": recipe.library}
        return data.python_corpus(**about)
    corpus = data.corpus(data.PathTexts(paths, pattern=pattern, column=column), **about)
    n = min(corpus.train.n_tokens, corpus.validation.n_tokens)
    if n < recipe.n_ctx:
        raise ValueError(
            f"The text has {corpus.train.n_tokens:,} training and {corpus.validation.n_tokens:,} "
            f"validation tokens, less than one context of {recipe.n_ctx}. Take more text, or a "
            "smaller --context."
        )
    return corpus


def _keep(out: Path, settings: dict[str, Any]) -> None:
    """Write down what was asked for; the folder is made here."""
    from tl_sparse.files import write_text

    if not (out / SETTINGS).is_file():
        write_text(out / SETTINGS, json.dumps(settings, indent=1) + "\n")


def _run(
    recipe: "Recipe", corpus: "Corpus", out: Path, *, device: str, progress: bool
) -> dict[str, Any]:
    """Train, and give what there is to say about it."""
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.sites import model_hash
    from tl_sparse.training import train as train_model

    shape = recipe.shape(corpus.d_vocab, device=device)
    model = HookedSparseTransformer(shape, tokenizer=corpus.tokenizer, sparsity=recipe.sparsity)
    history = train_model(model, corpus, recipe.training, folder=out, progress=progress)
    lowest = min(history.records, key=lambda record: record["validation_loss"])
    return {
        "folder": str(out),
        "model": str(out / "checkpoint" / "model"),
        "model_hash": model_hash(model),
        "summary": repr(model),
        "corpus": corpus.hash,
        "n_tokens": history.n_tokens,
        "validation_loss": history.validation_loss,
        "passes": history.n_tokens / corpus.train.n_tokens,
        "lowest": {"validation_loss": lowest["validation_loss"], "tokens": lowest["tokens"]},
        "seconds": history.records[-1]["seconds"],
    }
