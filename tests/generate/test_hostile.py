"""Sets with hostile keys, captions, names and licences: what commands print, the card, the gallery, the report."""

import io
import json
import logging
import re
import tarfile
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from captioners.base import Caption, Captioned
from diversity.config import DiversityConfig
from diversity.run import run as diversity
from generate.captions.run import run as generate
from generate.sets.gallery import GalleryConfig
from generate.sets.gallery import run as gallery
from generate.sets.verify import VerifyConfig
from generate.sets.verify import run as verify
from imagetext.shown import at_terminal
from imagetext.sources import read_records

SECRET = "sk-Evil12345678"
KEY = f" {SECRET} \x1b[31m[red]\u202e|`$x$<img src=x onerror=alert(1)>\r"
TEXT = (
    "a dog \x1b]0;t\x07 [link=http://e.example]x[/link] </script><script>alert(1)</script> | `b` $\\frac{1}{0}$ "
    "\u202eb\nproblem: none"
)
STEM = "x\"); import os; os.system('id') #|`\x1b[2J"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Tags(HTMLParser):
    """Collects the tags of a page with the names of their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.update([tag, *(f"{tag} {name}" for name, _ in attributes)])
        assert not any((value or "").startswith("javascript:") for _, value in attributes)


def tar(path, jpeg) -> None:
    """Write two pictures with hostile keys and metadata: one does not decode, one occurs twice, with a warning."""
    with tarfile.open(path, "w") as archive:
        for key, image in ((f"0{KEY}", jpeg), (f"1{KEY}", b"none"), (f"1{KEY}", b"none")):
            meta = {"license": TEXT, "error": "https://me:secret@host/?sig=abcdef", "source": TEXT}
            for suffix, data in {"jpg": image, "txt": TEXT.encode(), "json": json.dumps(meta).encode()}.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory):
    """The tags of a report on harmless captions."""
    folder = tmp_path_factory.mktemp("plain")
    return report_of(folder, "syn_text_one", "syn_text_two", key="k", text="a red dog | runs")


def report_of(folder, first: str, second: str, key: str, text: str) -> set[str]:
    """Write a report on two columns of two pictures, and return the tags of its page."""
    rows = [
        {
            "key": f"{key}{number}",
            "captions": [f"{text} {number}", "two cats"],
            first: [f"{text} a", "dogs"],
            second: [f"b {text}", "dogs sit"],
        }
        for number in range(2)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        diversity(
            DiversityConfig(
                input=[str(folder / "rows.jsonl")], column=[first, second], embedder="none", output=folder / "report"
            )
        )
        == 0
    )
    return Tags((folder / "report" / "report.html").read_text()).found


def test_a_report_on_hostile_columns(tmp_path, plain_tags, capsys):
    first, second = f"syn_text_{TEXT}", "syn_text_# [red]x[/red] $1$ \\"
    assert report_of(tmp_path, first, second, key=KEY, text=TEXT) == plain_tags
    printed = capsys.readouterr().out
    assert not OBEYED.search(printed) and not any(line.startswith("problem: none") for line in printed.splitlines())
    assert "[red]x[/red]" in printed
    page = (tmp_path / "report" / "report.html").read_text()
    assert not OBEYED.search(page.replace("\t", " ")) and SECRET not in page
    report = MarkdownIt("gfm-like", {"linkify": False}).parse((tmp_path / "report" / "report.md").read_text())
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in report}
    assert kinds <= {"paragraph", "inline", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item"}
    assert {child.type for token in report for child in token.children or ()} <= {"text", "text_special", "softbreak"}
    assert sum(token.type == "tr_open" for token in report) == 4


def test_a_hostile_set_is_captioned_shown_and_verified(captioner, pictures, configure, tmp_path, capsys, monkeypatch):
    def caption(requests, sampling, **_):
        for key, *_ in requests:
            yield Captioned(key, tuple(Caption(TEXT, -1.0, False) for _ in range(sampling.num_captions)))

    captioner.caption = caption
    captioner.name = "fake"
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    (tmp_path / "in").mkdir()
    tar(tmp_path / "in" / f"{STEM}.tar", pictures(1)[0])
    with at_terminal():
        assert generate(configure(max_error_rate=1, num_captions=3)) == 0
        assert gallery(GalleryConfig(folder=str(tmp_path / "out"))) == 0
        shard = next((tmp_path / "out").glob("*.tar"))
        shard.write_bytes(shard.read_bytes() + bytes(1024))
        assert verify(VerifyConfig(folder=tmp_path / "out", decode=True)) == 1
    printed = capsys.readouterr()
    bars, lines = (printed.out + printed.err).replace("\r\n", "\n").split("\r"), printed.out.splitlines()
    assert not any(OBEYED.search(bar.replace("\x1b[A", "")) for bar in bars) and "seen twice" in printed.err
    assert sum(line.startswith("problem: ") for line in lines) == 1 and SECRET not in printed.out + printed.err

    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"pretty_name", "task_categories", "tags", "size_categories", "configs"}
    assert not OBEYED.search(card) and "<script" not in body.replace("\\<script", "")
    [code] = [
        token.content
        for token in MarkdownIt().parse(body)
        if token.type == "code_block" and "webdataset.WebDataset" in token.content
    ]
    call = re.search(r"webdataset\.WebDataset\((.*)\):", code)[1]
    assert isinstance(eval(call, {"__builtins__": {}}), str)  # a text, and nothing that runs

    page = (tmp_path / "out" / "gallery.html").read_text()
    assert not OBEYED.search(page) and page.count("<script>") == 1 and "img onerror" not in Tags(page).found
    written = (tmp_path / "out" / "run.json").read_text() + next((tmp_path / "out").glob("*.done.json")).read_text()
    assert "secret" not in written and not [record for record in read_records(str(shard)) if "secret" in record.error]
