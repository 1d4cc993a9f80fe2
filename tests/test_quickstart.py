"""A short quickstart, with a thirtieth of its steps, writes every file that it promises; quality is not tested."""

import json
import re

import pytest

from imagetext.lock import FolderLock
from imagetext.sources import read_records
from quickstart import AFTER, BEFORE, HUMAN, NEXT, QuickstartConfig, run


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return QuickstartConfig(
        output=tmp_path_factory.mktemp("quickstart") / "runs",
        samples_seen=3_000,
        train_pictures=200,
        held_out_pictures=12,
    )


def test_all_three_jobs_and_what_they_leave(short, capsys, monkeypatch):
    monkeypatch.setattr("quickstart.VALIDATIONS", 1)
    assert run(short) == 0
    printed = capsys.readouterr().out
    records = list(read_records(str(short.output / "records" / "*.tar")))
    assert len(records) == 12
    for record in records:
        assert len(record.syn_text[BEFORE]) == len(record.syn_text[AFTER]) == 5
        assert record.meta["scene"]["objects"] and len(record.captions) == 5
    columns = json.loads((short.output / "report" / "report.json").read_text())["columns"]
    assert set(columns) == {BEFORE, AFTER, HUMAN}
    assert columns[HUMAN]["facts"]["precision"] == 1
    page = (short.output / "gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12 and records[3].syn_text[AFTER][0] in page
    for promised in ("captioner", "records", "report/report.html", "gallery.html"):
        assert str(short.output / promised) in printed and (short.output / promised).exists()
    assert len(re.findall(r"^    (?:human|before|after) ", printed, re.MULTILINE)) == 5 * 3 + 3
    last_screen = printed.partition("How long each part took")[2]
    assert len(re.findall(r"^   +\d+:[0-5]\d  (?:fine-tune|caption|score) ", last_screen, re.MULTILINE)) == 4
    assert last_screen.endswith("\n".join(NEXT) + "\n")


def test_a_folder_of_something_else_and_a_second_one_at_once_are_refused(tmp_path):
    (tmp_path / "gallery.html").write_text("mine")
    with pytest.raises(ValueError, match="not empty, and holds no quickstart; give another folder"):
        run(QuickstartConfig(output=tmp_path))
    with FolderLock(tmp_path / "runs"), pytest.raises(ValueError, match="writes here"):
        run(QuickstartConfig(output=tmp_path / "runs"))
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.html"]


def test_running_it_again_does_nothing_anew(short, capsys):
    before = {path: path.stat().st_mtime_ns for path in short.output.rglob("*.tar")}
    assert run(short) == 0
    assert "finished model" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in short.output.rglob("*.tar")}
