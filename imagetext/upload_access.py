"""Whether an upload to the Hugging Face Hub will be possible at the end of a run."""


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
