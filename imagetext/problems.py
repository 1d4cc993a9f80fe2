"""All problems of all inputs as one error, before any work."""

import shlex
from collections.abc import Iterable, Sequence
from itertools import chain

FLAGS = 8  # flags that one message names
PROBLEMS = 100  # problems that are reported, one on each line


class LeadsOutside(ValueError):
    """Pictures of one or several inputs lead out of the folders that the user named.

    first: what is wrong in the first input. count: how many pictures lead out. folders: where those pictures lie.
    inputs: how many inputs have such pictures.
    """

    def __init__(self, first: str, count: int, folders: Sequence[str], inputs: int = 1):
        super().__init__(first, count, folders, inputs)  # all arguments, so that the error can be pickled
        self.first, self.count, self.folders, self.inputs = first, count, dict.fromkeys(folders), inputs

    def __str__(self) -> str:
        others = f"; together with {self.inputs - 1:,} other inputs, {self.count:,} do" if self.inputs > 1 else ""
        flags = " ".join(f"--images {shlex.quote(folder)}" for folder in [*self.folders][:FLAGS])
        return f"{self.first}{others}; if these files may be read, add {flags}, or a folder above"


def one_error(problems: Iterable[str | Exception]) -> ValueError:
    """Join all problems into one error, each once. All LeadsOutside are joined into one of its lines."""
    problems = list(problems)
    outside = [problem for problem in problems if isinstance(problem, LeadsOutside)]
    others = list(dict.fromkeys(str(problem) for problem in problems if not isinstance(problem, LeadsOutside)))
    if len(others) > PROBLEMS:
        others[PROBLEMS:] = [f"and {len(others) - PROBLEMS:,} more problems"]
    if not outside:
        return ValueError("\n".join(others))
    together = LeadsOutside(
        outside[0].first,
        sum(problem.count for problem in outside),
        [*chain.from_iterable(problem.folders for problem in outside)],
        inputs=sum(problem.inputs for problem in outside),
    )
    return ValueError("\n".join([*others, str(together)])) if others else together
