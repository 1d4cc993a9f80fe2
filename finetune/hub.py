"""Uploads a captioner to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from imagetext.cards import CARD


def push(folder: Path, files: Sequence[str], name: str, *, public: bool) -> None:
    """Upload a captioner's files and its card, and nothing else, to a repository, which is created if need be.

    A new repository is private unless `public`. Raises OSError if the upload fails; the same command then tries again.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*files, CARD])
    except Exception as error:  # the client's errors differ between its versions
        raise OSError(
            f"--push-to-hub {name}: {error}\nthe captioner is finished in {folder}; the same command tries the upload "
            "again"
        ) from error
