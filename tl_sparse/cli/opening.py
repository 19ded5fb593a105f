"""What commands open before they work: models, tasks, texts, devices, places to write to.

All that can be refused is refused here, before minutes of work.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_sparse.cli.completing import DEVICES, TASKS, one_of
from tl_sparse.cli.speaking import note

if TYPE_CHECKING:
    from tl_sparse.data import Corpus
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.tasks import PairTask

ModelFolder = Annotated[
    Path,
    typer.Argument(
        help="A model's folder, or that of a training run, e.g. demo/sparse; or python-tiny, which "
        "comes with the package (python-tiny/control is its dense control)."
    ),
]
TaskName = Annotated[
    str,
    typer.Argument(
        help="A task by name, as `tl-sparse tasks` lists them, or a .jsonl file of your own pairs.",
        autocompletion=one_of(TASKS),
    ),
]
CorpusCache = Annotated[
    Path | None,
    typer.Option(help="Where corpora stand, e.g. demo/corpus; default: the cache folder."),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1 or mps.", autocompletion=one_of(DEVICES))
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and only that.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def device_of(name: str) -> str:
    """Check that there is a device of that name, and give the name.

    Raises:
        ValueError: If there is none.
    """
    import torch

    kind, _, number = name.partition(":")
    numbered = kind == "cuda" and number.isdecimal()
    if name not in ("cpu", "cuda", "mps") and not numbered:
        raise ValueError(f"A device is cpu, cuda, cuda:1 (a number) or mps, got {name!r}.")
    if kind == "cuda":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= n:
            what = f"GPUs 0 to {n - 1}" if n else "no GPU"
            raise ValueError(
                f"--device {name}: this torch ({torch.__version__}) finds {what} here. Use "
                "--device cpu, or install a CUDA build of torch."
            )
        torch.cuda.set_device(int(number or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps needs a Mac with Apple's GPU. Use --device cpu.")
    return name


def shipped(path: Path) -> Path:
    """Give the path in the package of a part of a pair that comes with it, or the path as it is.

    `python-tiny/circuits/sparse/for_while.json` is the package's, where no such file is here.
    """
    zoo = Path(__file__).parents[1] / "zoo"
    within = not path.is_absolute() and ".." not in path.parts and path.parts
    if within and not path.exists() and (zoo / path.parts[0] / "card.json").is_file():
        return zoo / path if (zoo / path).exists() else path
    return path


def model_folder(folder: Path) -> Path:
    """Find the model's folder in a run's or a pair's, or give the folder as it is."""
    folder = shipped(folder)
    if (folder / "card.json").is_file():
        return folder / "sparse"
    inside = folder / "checkpoint" / "model"
    return inside if not (folder / "config.json").is_file() and inside.is_dir() else folder


def open_model(folder: Path, *, device: str = "cpu") -> "HookedSparseTransformer":
    """Load a model from its folder, or from the folder of the run that trained it.

    Raises:
        ValueError: If there is none, or no such device.
    """
    place = model_folder(folder)
    if not place.is_dir():
        what = f"There is no folder {folder} to load a model from"
        if place.exists():
            what = f"{folder} is a file, and a model is a folder"
        raise ValueError(
            f"{what}. `tl-sparse train --out FOLDER` makes one; python-tiny comes with the package."
        )
    device = device_of(device)
    from tl_sparse.model import HookedSparseTransformer
    from tl_sparse.training import steps_done

    of_run = place.parent.name == "checkpoint"
    done, total = steps_done(place.parent.parent) if of_run else (0, 0)
    if done != total:
        note(
            f"The run in {folder} was stopped at step {done:,} of {total:,}: this model is in the "
            "middle of its training, and may be denser than it was to be. The same `tl-sparse "
            "train` command goes on."
        )
    return HookedSparseTransformer.load(place, device=device)


def open_for_tasks(folder: Path, *, device: str = "cpu") -> "HookedSparseTransformer":
    """Load a model that has a tokenizer.

    Raises:
        ValueError: If there is none, it has no tokenizer, or there is no such device.
    """
    model = open_model(folder, device=device)
    if model.tokenizer is None:
        raise ValueError(
            "The model has no tokenizer, and tasks are made for one. Save it with the tokenizer of "
            "its text: model.set_tokenizer(corpus.tokenizer), then model.save(folder)."
        )
    return model


def is_file_of_pairs(task: str) -> bool:
    """Tell whether a task is named by a file instead of a name."""
    return task.endswith(".jsonl") or "/" in task or Path(task).is_file()


def open_task(task: str, tokenizer: Any, *, max_tokens: int | None = None) -> "PairTask":
    """Make a task by name, or of a file of pairs.

    Raises:
        ValueError: If there is no such task or file, or the tokenizer can't serve it.
    """
    from tl_sparse import tasks

    check_task(task)
    if not is_file_of_pairs(task):
        return tasks.get(task, tokenizer=tokenizer, max_tokens=max_tokens)
    return tasks.from_jsonl(task, tokenizer=tokenizer)


def check_task(task: str) -> None:
    """Check that there is a task of a name, or a file of pairs.

    Raises:
        ValueError: If there is none, or the file has the name of a task of ours.
    """
    from tl_sparse import tasks

    if not is_file_of_pairs(task):
        tasks.spec(task)
        return
    path = Path(task)
    if not path.is_file():
        raise ValueError(
            f"There is no file {path} of pairs. `tl-sparse tasks` lists the tasks that need none."
        )
    if path.stem in tasks.names():
        raise ValueError(
            f"The file {path} has the name of one of our tasks. Give it another, so that its "
            "circuits can't pass for that task's."
        )


def file_of(task: str) -> dict[str, Any]:
    """Note the file that a task was made of: nothing for a task by name."""
    if not is_file_of_pairs(task):
        return {}
    return {"task_file": {"path": str(Path(task).absolute()), "sha256": _sha256(Path(task))}}


def task_again(provenance: Mapping[str, Any], name: str, given: Path | None) -> str:
    """Find the task that a circuit was found on: the file given, the one noted, or the name.

    Raises:
        ValueError: If the noted file is gone or was changed.
    """
    if given is not None:
        return str(given) if is_file_of_pairs(str(given)) else f"./{given}"
    noted = provenance.get("task_file")
    if not noted:
        return name
    path = Path(str(noted.get("path")))
    if not path.is_file():
        raise ValueError(
            f"The circuit was found on the pairs of {path}, which is gone. Name the file: "
            "--task-file PATH."
        )
    if _sha256(path) != noted.get("sha256"):
        raise ValueError(
            f"{path} was changed since the circuit was found on its pairs. Prune again, or name "
            "the file to audit on all the same: --task-file PATH."
        )
    return str(path)


def training_text(
    model: "HookedSparseTransformer", folder: Path | None, *, progress: bool
) -> "Corpus":
    """Open the text that a model was trained on, or else the default text for its tokenizer."""
    from tl_sparse import data
    from tl_sparse.data.corpora import open_cached

    place = data.default_cache_dir() if folder is None else folder
    for name in reversed(model.trained_on):
        if corpus := open_cached(place / name, tokenizer=model.tokenizer):
            return corpus
    note(
        f"The text that the model was trained on is not known to be in {place}; means are taken "
        "over the default Python text."
    )
    return data.python_corpus(tokenizer=model.tokenizer, cache_dir=place, progress=progress)


def check_file(path: Path, *, read: Iterable[Path | None] = ()) -> None:
    """Check that a file could be written, before the work whose result it is to hold.

    Raises:
        ValueError: If its place is a folder, or that of a file that the command reads.
        OSError: If it could not.
    """
    for given in read:
        if given is not None and given.exists() and path.exists() and path.samefile(given):
            raise ValueError(
                f"{path} would be written over, and the command reads it. Give another --out."
            )
    if path.is_dir():
        raise ValueError(f"--out is a file's name, and {path} is a folder.")
    check_folder(path.absolute().parent)


def check_folder(path: Path) -> None:
    """Check that files could be written into a folder, which need not be there yet.

    Raises:
        ValueError: If a part of the path is a file.
        OSError: If they could not.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{place} is a file, and a folder is needed there. Choose another name.")
    try:
        with tempfile.TemporaryFile(dir=place):
            return
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
