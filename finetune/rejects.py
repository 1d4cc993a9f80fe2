"""What of the input cannot be trained on: told of, and an error where it is too much."""

import json
from collections.abc import Sequence
from pathlib import Path

from finetune.batching import NO_CAPTION
from finetune.folder import REJECTS, Config
from imagetext.outputs import write_file
from imagetext.shown import masked, say

SHOWN = 3  # rejects in an error


def check_rejects(rejects: Sequence[tuple[str, str]], usable: int, config: Config) -> None:
    """Raises ValueError where more of the captioned pictures are broken or missing than `--max-error-rate` allows."""
    failed = [f"{key}: {error}" for key, error in rejects if error != NO_CAPTION]
    rate = len(failed) / (len(failed) + usable)
    if rate > config.max_error_rate:
        more = f"and {len(failed) - SHOWN:,} more" if len(failed) > SHOWN else ""
        raise ValueError("\n  ".join(filter(None, [
            f"{len(failed):,} of {len(failed) + usable:,} samples cannot be used, {rate:.1%}, and --max-error-rate allows "
            f"{config.max_error_rate:.1%}:", *failed[:SHOWN], more])))


def tell_of_rejects(rejects: Sequence[tuple[str, str]], output: Path) -> None:
    """Names the samples that were left out, each with its reason."""
    if rejects:
        lines = [json.dumps({"key": key, "error": masked(error)}) + "\n" for key, error in rejects]
        write_file(output / REJECTS, "".join(lines))
        say(f"{len(rejects)} samples left out, see {output / REJECTS}")
