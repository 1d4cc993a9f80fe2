"""Measure what captions and teachers are worth to students: `python -m benchmarks.evidence --output DIR`.

This makes captioners, captions and a reinforced set, trains a student for each arm and seed, and measures it on
held-out pictures. It takes some hours on two cores. Every result is a file in DIR and is not made again, so a stopped
command can be given again to continue. `--words` makes only the students of texts that are made from texts, such as
hard negatives. `--rewriter NAME` adds students of rewrites of the alt text by that language model. `--page FILE`
writes tables between the marks of a page, and pictures beside it, for the seeds that all arms of a comparison have.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # one process per core is faster than all cores for each process; must be set before torch is imported

from benchmarks.evidence.page import write_page
from benchmarks.evidence.sets import (
    CAPTIONERS,
    CAPTIONS,
    COLUMNS,
    make_captioner,
    make_rewrites,
    make_set,
    make_words,
    write_figures,
)
from benchmarks.evidence.students import ARMS, OF_REWRITES, OF_WORDS, student_folder, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="number of students of each arm, with seeds 0, 1, …")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--words", action="store_true", help="make only students of texts that are made from texts")
    parser.add_argument("--rewriter", help="folder or name of a language model of transformers (default: no rewrites)")
    parser.add_argument("--page", type=Path, help="write the results into this Markdown page, without training")
    args = parser.parse_args()
    if args.page:
        write_page(args.page, args.output)
        return
    arms = {**OF_WORDS}
    writer = COLUMNS[CAPTIONS].captioner
    make_captioner(args.output, writer, CAPTIONERS[writer])
    make_words(args.output)
    if args.rewriter:
        make_rewrites(args.output, args.rewriter)
        arms |= OF_REWRITES
    if not args.words:
        for name, tuned in CAPTIONERS.items():
            make_captioner(args.output, name, tuned)
        make_set(args.output)
        if not (args.output / "figures.json").exists():
            write_figures(args.output)
        arms |= ARMS
    student_folder(args.output)
    train(args.output, arms, args.seeds, args.processes)


if __name__ == "__main__":
    main()
