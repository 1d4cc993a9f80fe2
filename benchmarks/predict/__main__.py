"""Which figure of captions predicts their students? `python -m benchmarks.predict --output DIR`, some hours on two
cores.

For one world after the other, this makes captioners, pools of captions, columns of equal mean length that are drawn
from the pools, the figures of all columns, and a student for each column and seed. Every result is a file in DIR and
is not made again, so a stopped command can be given again to continue. `--page FILE` writes tables and pictures of the
results so far into a page. `--old` makes the columns of `benchmarks.evidence` again, and says how the
same figures rank them.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in benchmarks.evidence; before torch is imported

from benchmarks.evidence.students import Arm, student_folder, train
from benchmarks.predict.design import CLIP, WORLDS, World
from benchmarks.predict.figures import write_figures
from benchmarks.predict.old import old_table
from benchmarks.predict.page import write_page
from benchmarks.predict.sets import make_captioners, make_clip, make_columns, make_pools


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="number of students of each column, with seeds 0, 1, …")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the results into this Markdown page, without training")
    parser.add_argument(
        "--old", action="store_true", help="compute only the figures of the old columns, without training"
    )
    args = parser.parse_args()
    if args.page:
        write_page(args.page, args.output)
        return
    if args.old:
        print(old_table(args.output))
        return
    make_clip(args.output)
    for world in WORLDS:
        make_captioners(args.output, world)
        make_pools(args.output, world)
        make_columns(args.output, world)
        folder, captioned = args.output / f"{world.name}_figures", args.output / f"{world.name}_captioned"
        write_figures(folder, captioned, pictures=world.pictures, columns=[*world.columns], clip=args.output / CLIP)
        student_folder(args.output, world.student)
        train(args.output, arms(world), seeds=args.seeds, processes=args.processes)


def arms(world: World) -> dict[str, Arm]:
    """The arms of a world: a student of each column, and one of the alt text alone."""
    of_world = {"records": world.name, "student": world.student.name, "level": world.level}
    return {
        f"{world.name}_none": Arm(**of_world),
        **{name: Arm((name,), **of_world) for name in world.columns},
    }


if __name__ == "__main__":
    main()
