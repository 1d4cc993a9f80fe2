"""Fails where a new captioner is not clearly better than the old one: `python is_it_better.py SET OLD NEW`.

SET is a set with both columns, and with human captions of its pictures. The rule is that of `capsmith diversity`: better by the
best evidence that there is, and under no suspicion.
"""

import sys

from diversity import score_captions
from imagetext.sources import read_records


def main(pattern: str, old: str, new: str) -> int:
    records = [record for record in read_records(pattern) if not record.error and record.captions]
    columns = {name: [list(record.columns.get(name, ())) for record in records] for name in (old, new)}
    report = score_captions(columns, references=[list(record.captions) for record in records])
    print(report.answer[0])
    return 0 if report.verdict.winner == new else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
