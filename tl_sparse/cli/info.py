"""`tl-sparse info`."""

from pathlib import Path
from typing import Annotated

import typer

from tl_sparse.cli.speaking import errors, say


def info(
    folder: Annotated[
        Path, typer.Argument(help="A model folder, e.g. demo/sparse/checkpoint/model.")
    ],
) -> None:
    """Show what a saved model is made of: shapes, densities, dead neurons, bytes, its data."""
    from tl_sparse.checkpoints import stored_bytes
    from tl_sparse.model import HookedSparseTransformer

    try:
        model = HookedSparseTransformer.load(folder)
        say(repr(model.summary()))
        say(f"trained on: {', '.join(model.trained_on) or 'nothing that it knows of'}")
        say(str(stored_bytes(folder)))
    except ValueError as error:
        errors.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from None
