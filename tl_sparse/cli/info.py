"""`tl-sparse info`."""

from dataclasses import asdict

from tl_sparse.cli.opening import AsJson, ModelFolder, model_folder, open_model
from tl_sparse.cli.speaking import say, say_json, then


def info(folder: ModelFolder, as_json: AsJson = False) -> None:
    """Show what a saved model is made of: shapes, densities, dead neurons, bytes, its data.

    For example: `tl-sparse info demo/sparse`, `tl-sparse info python-tiny`
    """
    model = open_model(folder)
    from tl_sparse.checkpoints import stored_bytes
    from tl_sparse.sites import model_hash

    summary, stored = model.summary(), stored_bytes(model_folder(folder))
    if as_json:
        about = {"model_hash": model_hash(model), "sparsity": model.sparsity.to_dict()}
        about |= {"trained_on": list(model.trained_on), "stored_bytes": asdict(stored)}
        say_json(asdict(summary) | about)
        return
    say(repr(summary))
    say(f"trained on: {', '.join(model.trained_on) or 'nothing that it knows of'}")
    say(str(stored))
    then(f"tl-sparse tasks --model {folder} says what it can do.")
