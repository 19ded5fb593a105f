"""Model folders on the Hugging Face hub, up and down. Nothing that comes down is executed.

What travels is the folder that `HookedSparseTransformer.save` writes, with a README whose metadata
lets people find it.
"""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

PATTERNS = ("config.json", "model.safetensors", "tokenizer/*")
"""The files of a repository that are fetched."""

CARD = """---
library_name: tl_sparse
tags: [weight-sparse, interpretability, transformer-lens]
---

# {name}

A weight-sparse transformer, made with tl_sparse:

    from tl_sparse import HookedSparseTransformer
    model = HookedSparseTransformer.from_pretrained("{repo_id}")

{description}
"""


def card(repo_id: str, description: str) -> str:
    """Give the README of a model's repository."""
    return CARD.format(name=repo_id.split("/")[-1], repo_id=repo_id, description=description)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload a tl_sparse model",
    endpoint: str | None = None,
) -> str:
    """Upload a folder in one commit, making the repository if there is none; give its address.

    Raises:
        ValueError: If `repo_id` is not a name that the hub allows.
        huggingface_hub.errors.HfHubHTTPError: If the hub refuses, e.g. without a token.
    """
    api = HfApi(endpoint=endpoint, token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
    except HFValidationError as error:
        raise ValueError(f"A repository is named user/name, got {repo_id!r}: {error}") from None
    api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message)
    return str(url)


def fetch_folder(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download a model's folder, or find it where an earlier call put it; give its place.

    Raises:
        ValueError: If the hub has no such repository, or can't be reached and nothing is kept.
    """
    api = HfApi(endpoint=endpoint, token=token)
    try:
        place = api.snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{repo_id!r} is neither a folder nor a model of TransformerLens, and the hub did not "
            f"give it: {str(error).strip().splitlines()[0]}"
        ) from None
    return Path(place)
