"""The Hugging Face Hub: whether a captioner can be uploaded there, and the upload."""

from collections.abc import Sequence
from pathlib import Path

from imagetext.cards import CARD


def check_hub(name: str) -> None:
    """Raises ValueError where there is no token that may write to `org/name`, or the name is none; OSError without the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    where = f"--push-to-hub {name}"
    try:
        validate_repo_id(name)
        who = HfApi().whoami()
    except HFValidationError as error:
        raise ValueError(f"{where}: {error}") from error
    except LocalTokenNotFoundError as error:
        raise ValueError(f"{where}: there is no token; give one with `hf auth login` or HF_TOKEN") from error
    except Exception as error:  # the client's own errors, which differ between its versions
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise ValueError(f"{where}: the token is not valid: {error}") from error
        raise OSError(f"{where}: the Hub does not answer: {error}") from error
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"{where}: the token may only read; make one that may write")
    places = [who["name"], *(one["name"] for one in who.get("orgs", []))]
    if name.partition("/")[0].lower() not in (place.lower() for place in places):
        raise ValueError(f"{where}: the token may write to {', '.join(places)}")


def push(folder: Path, files: Sequence[str], name: str, *, public: bool) -> None:
    """Uploads a captioner's files and its card, nothing else; makes a repository where there is none, private unless `public`.

    Raises OSError, after which the same command tries again.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*files, CARD])
    except Exception as error:  # the client's own errors, which differ between its versions
        raise OSError(
            f"--push-to-hub {name}: {error}\nthe captioner is finished in {folder}; the same command tries the upload "
            "again"
        ) from error
