"""The figures of the fourteen columns of `benchmarks.evidence`, from which the index was chosen, and how they rank
gains.
"""

from pathlib import Path

import numpy as np

from benchmarks.evidence.page import markdown
from benchmarks.evidence.sets import CAPTIONERS, POINTS, SET, make_captioner, make_captions
from benchmarks.evidence.tau import kendall_tau
from benchmarks.predict.design import CLIP
from benchmarks.predict.figures import LABELS, read_figures, turned, write_figures
from benchmarks.predict.sets import make_clip

GAINS = {  # gains in per cent, from docs/evidence.md
    "long_greedy": 13.6,
    "much_greedy": 13.2,
    "long_p09": 13.0,
    "much_t05": 8.7,
    "much_one": 7.0,
    "much_p09": 6.6,
    "little_greedy": 4.9,
    "much_t15": 4.6,
    "little_p09": 3.1,
    "pretrained_p09": 0.9,
    "much_t25": 0.4,
    "little_t15": 0.3,
    "pretrained_greedy": -0.1,
    "pretrained_t05": -0.2,
}
ALIKE = (
    "much_greedy",
    "much_t05",
    "much_one",
    "much_p09",
    "little_greedy",
    "much_t15",
    "little_p09",
)  # these columns have 8.5 to 9.6 words


def old_table(output: Path) -> str:
    """Make the captions again, measure missing figures, and return a table of how figures rank the columns.

    The table has a tau for all columns, and one for the columns of similar length.
    """
    for name, tuned in CAPTIONERS.items():
        make_captioner(output, name, tuned)
    make_captions(output)
    make_clip(output)
    folder = output / "evidence_figures"
    write_figures(folder, output / "captioned", pictures=SET, columns=[*POINTS], clip=output / CLIP)
    gains, alike = [*GAINS.values()], [name in ALIKE for name in GAINS]
    lines = []
    for name, values in turned(read_figures(folder, [*GAINS])).items():
        among = kendall_tau(values[np.array(alike)], [gain for gain, is_alike in zip(gains, alike) if is_alike])
        lines.append([LABELS[name], f"{kendall_tau(values, gains):+.2f}", f"{among:+.2f}"])
    return markdown(["figure", "τ over fourteen columns", "over seven of like length"], lines)
