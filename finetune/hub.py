"""Uploads a captioner to the Hugging Face Hub, and checks before the training whether that will be possible."""

from collections.abc import Sequence
from pathlib import Path

from imagetext.cards import CARD


def check_hub(name: str) -> None:
    """Raise ValueError if `name` is invalid or no token may write there, OSError if the Hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    flag = f"--push-to-hub {name}"
    try:
        validate_repo_id(name)
        user = HfApi().whoami()
    except HFValidationError as error:
        raise ValueError(f"{flag}: {error}") from error
    except LocalTokenNotFoundError as error:
        raise ValueError(f"{flag}: there is no token; give one with `hf auth login` or HF_TOKEN") from error
    except Exception as error:  # the client's errors differ between its versions
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise ValueError(f"{flag}: the token is not valid: {error}") from error
        raise OSError(f"{flag}: the Hub does not answer: {error}") from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"{flag}: the token may only read; create one that may write")
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if name.partition("/")[0].lower() not in (owner.lower() for owner in owners):
        raise ValueError(f"{flag}: the token may only write to {', '.join(owners)}")


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
