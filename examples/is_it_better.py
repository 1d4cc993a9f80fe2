"""Fails if a new captioner is not clearly better than the old one: `python is_it_better.py SET OLD NEW`.

SET is a set with both caption columns, OLD and NEW, and with human captions of its pictures. The rule is that of
`capsmith diversity`: the new column must be better by the best available evidence, and not suspect.
"""

import sys

from diversity import score_captions
from imagetext.sources import read_records


def main(pattern: str, old_column: str, new_column: str) -> int:
    records = [record for record in read_records(pattern) if not record.error and record.captions]
    columns = {name: [list(record.columns.get(name, ())) for record in records] for name in (old_column, new_column)}
    report = score_captions(columns, references=[list(record.captions) for record in records])
    print(report.answer[0])
    return 0 if report.verdict.winner == new_column else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
