"""What captions and teachers are worth to students: `python -m benchmarks.evidence --output DIR`, some hours on two cores.

Makes captioners, captions and a reinforced set, trains a student for each arm and seed, and measures it on held-out pictures.
Every piece is a file in DIR, and what is there is not made again: the command can be stopped, and goes on. `--words` makes only what
is needed to compare texts that are made from texts, hard negatives among them, and `--rewriter NAME` adds rewrites of the alt text
by that language model to these. `--page FILE` writes the tables between the marks of a page, and pictures beside it, of the seeds
that all arms of a comparison have.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # a process a core is faster than a core's share of each; before torch is imported

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
    parser.add_argument("--seeds", type=int, default=3, help="students of each arm; seeds 0, 1, …")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--words", action="store_true", help="only students of texts that are made from texts")
    parser.add_argument(
        "--rewriter", help="a language model of transformers, by its folder or name; without it, no rewrites"
    )
    parser.add_argument("--page", type=Path, help="a Markdown page to write the results into; nothing is trained then")
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
