"""README and docs: links lead to files and headings, commands are accepted, examples work, walks follow the code."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import capsmith
from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.shards import ShardWriter
from quickstart import NEXT

from .test_architecture import module_of, modules_imported

ROOT = Path(capsmith.__file__).parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
STEP = re.compile(r"^\d\. `([\w/]+\.py)`(?:, imported by `([\w/]+\.py)`)?", re.MULTILINE)


def heading_anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """The relative links of a page whose file does not exist, or has no such heading."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in heading_anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def commands_of(document: Path) -> list[list[str]]:
    """The words after `capsmith` in each command of a page's shell blocks, and in complete commands of its text."""
    text = document.read_text(encoding="utf-8")
    lines = [
        line
        for _, language, block in FENCED.findall(text)
        if language == "sh"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`(capsmith [a-z-]+ --input [^`]+ --output [^`]+)`", FENCED.sub("", text))
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if "capsmith" in words:
            commands.append(words[words.index("capsmith") + 1 :])
    return commands


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_or_heading(document):
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A heading, `named`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Own\n[a](other.md#a-heading-named) [b](other.md#b) [c](none.md) [d](#own) [e](#other) "
        "[f](https://x.org/y)\n"
    )
    assert broken_links(page) == ["other.md#b", "none.md", "#other"]


def test_every_command_is_accepted_by_its_configuration(monkeypatch):
    class Accepted(Exception):
        pass

    def parse_only(command, config_type, argv):
        parse(command, config_type, argv)
        raise Accepted

    parse = capsmith.parse
    monkeypatch.setattr(capsmith, "parse", parse_only)
    refused, accepted = {}, set()
    commands = [words for document in DOCUMENTS for words in commands_of(document)]
    commands += [shlex.split(line)[1:] for line in NEXT]  # which the quickstart's last screen shows
    for command, *flags in commands:
        # COLUMN:p is a placeholder for the reader to fill in
        flags = [flag.replace("COLUMN:p", "syn_text_a:0.5") for flag in flags]
        if flags == ["--list-recipes"]:  # has no configuration
            continue
        try:
            capsmith.COMMANDS[command](flags)
        except Accepted:
            accepted.add(command)
        except (ValueError, KeyError) as error:
            refused[" ".join([command, *flags])] = str(error)
    assert refused == {}
    assert accepted == set(capsmith.COMMANDS) - {"quickstart"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_examples_of_the_python_page_work(tmp_path, monkeypatch):
    record = scene_sample(SceneSpec("train", 1), 0)
    (tmp_path / "picture.jpg").write_bytes(record.image)
    (tmp_path / "captioned").mkdir()
    with ShardWriter(tmp_path / "captioned", "00000", columns=["syn_text_a"]) as writer:
        writer.write(replace(record, columns={"syn_text_a": record.captions[:1]}))
    monkeypatch.chdir(tmp_path)
    examples = [
        block for _, language, block in FENCED.findall((ROOT / "docs/python.md").read_text()) if language == "python"
    ]
    assert len(examples) == 6
    for example in examples:
        exec(example, {})


@pytest.mark.parametrize("title", ["One picture from `--input` to a shard", "One caption from JSONL to a figure"])
def test_a_walk_goes_through_files_that_import_each_other(title):
    section = (
        (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    )
    steps = STEP.findall(section)
    assert 2 < len(steps) == len(re.findall(r"^\d", section, re.MULTILINE)) <= 8
    for number, (file, importer) in enumerate(steps):
        assert (ROOT / file).is_file()
        if importer:
            assert importer in [earlier for earlier, _ in steps[:number]]
            assert module_of(ROOT / file) in modules_imported(ROOT / importer)
