"""Text for people: hostile text in terminal, logs, Markdown and pages; secrets; advice; readers that are gone."""

import io
import logging
import os
import re
import subprocess
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from imagetext.pages import render_page
from imagetext.shown import (
    MOST,
    NOBODY_READS,
    Progress,
    at_terminal,
    in_markdown,
    in_yaml,
    masked,
    on_line,
    reason,
    say,
    say_error,
)

HOSTILE = [
    "\x1b[31mred\x1b[0m\x1b[2J",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31mred",
    "a\rb",
    "a\nb",
    "a\r\nb",
    "a\x85b\u2028c\u2029d",
    "a\u202egnp.exe",
    "a\u2066b",
    "a\x00b\x08\x08c",
    "[red]a[/red] [link=http://evil.example]b[/link]",
    "a\ud800b",
    "{bar} %s %(x)s {0}",
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "| a | b |",
    "`a` ``b``",
    "# a",
    "- a",
    "1. a",
    "===",
    "---",
    "+ a",
    "> a",
    "    a",
    "![a](http://evil.example/x.png)",
    "[a](javascript:alert(1))",
    "<http://evil.example>",
    "[a]: http://evil.example",
    "$\\frac{1}{0}$",
    "a\\",
    "a\\|b",
    "&lt;b&gt;",
    "~~a~~",
    "* a *b* __c__",
    "a  \nb",
    "{{ 7 * 7 }} {% raw %}",
    "```\na",
]
SECRETS = [
    "Bearer abc123def456",
    "bearer " + "abcdef" * 4,
    "sk-abc12345678",
    "sk-proj-AbC1-" + "x1" * 20,
    "sk-ant-api03-Ab-" + "c" * 20,
    "hf_" + "aBcDeFgH" * 4,
    "gsk_0123456789",
    "ghp_" + "a1" * 18,
    "AKIAIOSFODNN7EXAMPLE",
    "AIza" + "b" * 35,
    "xoxb-1234567890-abc",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
]
WITHIN = [  # and the part of it that stays
    ("https://user:pa@ss@host/x.jpg", "https://***host/x.jpg"),
    (
        "https://b.example/x.jpg?a=1&X-Amz-Signature=abc%2F1&X-Amz-Credential=AK/2",
        "https://b.example/x.jpg?a=1&X-Amz-Signature=***&X-Amz-Credential=***",
    ),
    ("https://b.example/x?sv=1&sig=ab%3D", "https://b.example/x?sv=1&sig=***"),
    ("?key=abc&access_token=def", "?key=***&access_token=***"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = ***"),
    ('{"api_key": "abcd1234"}', '{"api_key": "***"}'),
    ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
    ("password=hunter22", "password=***"),
]
NO_SECRETS = [
    "a bearer of bad news",
    "syn_text_hf_blip2large",
    "hf-internal-testing/tiny-random",
    "sk-20240101.tar",
    "sk-scenes-train-00001",
    "sketch-12345678",
    "openai:http://host:8000#model",
    "s3://bucket/a@b.jpg",
    "scenes:train,n=2",
    "the key is gone; its token: 49407",
    "a user@host.example wrote",
    "?page=2&author=x",
]
ADVICE = [
    "Please pass the argument `trust_remote_code=True` to allow it.",
    "Re-run with weights_only=False.",
    "Use torch.serialization.add_safe_globals.",
    "Object arrays need allow_pickle=True.",
]


def is_harmless(text: str) -> bool:
    return not any(
        unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or "\u202a" <= char <= "\u202e"
        or "\u2066" <= char <= "\u2069"
        for char in text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_is_one_line_and_obeys_nothing(text):
    assert is_harmless(on_line(text)) and len(on_line(text)) <= len(text)


def test_what_people_write_stays():
    for text in (
        "ein Hund – 犬が走る。",
        "می‌خواهم",
        "👩‍👩‍👧 x",
        "עברית \u200f1",
        "a\u00a0b\u202f1",
        "é",
        "  set back",
        "[red]",
        "",
    ):
        assert on_line(text) == text


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_masked(secret):
    assert masked(f"said '{secret}', no") == "said '***', no"


@pytest.mark.parametrize("text, expected", WITHIN)
def test_secrets_in_addresses_and_settings_are_masked(text, expected):
    assert masked(text) == expected and masked(expected) == expected


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_no_secret_stays(text):
    assert masked(text) == text


def test_secrets_of_the_environment_are_masked_whatever_they_look_like(monkeypatch):
    for name, value in {
        "OPENAI_API_KEY": "plain words",
        "MY_PASSWORD": "short",
        "HF_TOKEN": "aaaaaaaa",
        "HOME_DIR": "no secret",
    }.items():
        monkeypatch.setenv(name, value)
    assert masked("plain words, short, aaaaaaaa, no secret") == "***, short, ***, no secret"


@pytest.mark.parametrize("advice", ADVICE)
def test_no_line_advises_to_run_code(advice):
    assert on_line(f"It cannot be read. {advice} That is all.") == "It cannot be read. That is all."
    assert (
        reason(ValueError(f"It cannot be read. {advice} Run pip install evil now! That is all."))
        == "It cannot be read. That is all."
    )
    assert on_line(advice) == reason(advice) == "it asks for code of its own to be run, which is never done"


def test_our_own_words_on_such_settings_stay():
    for text in (
        "its tokenizer_kwargs ask for code to be run, by trust_remote_code, which is never done",
        "pip install 'capsmith[remote]'",
    ):
        assert on_line(text) == text


def test_lines_have_an_end_and_take_no_time():
    began = time.perf_counter()
    for part in (
        "a",
        "?token",
        "bearer ",
        "sk-",
        "://",
        "eyJ",
        "api key",
        "&",
        "a. ",
        "password ",
        "trust_remote_code(",
        "sk-a1-",
        "\x1b",
        "x@",
        "://a@",
        '":"',
    ):
        assert len(on_line(part * 1_000_000)) <= MOST + 1
    assert time.perf_counter() - began < 5
    assert len(reason("a " * 10_000)) < 500


class Terminal(io.StringIO):
    """A terminal that is not UTF-8."""

    encoding = "ascii"


def test_a_terminal_that_lacks_characters_gets_others():
    terminal = Terminal()
    say("ein Käfer – 犬", "\ud800", file=terminal)
    assert terminal.getvalue() == "ein K?fer ? ?\n \n"


@pytest.mark.parametrize("text", HOSTILE)
def test_errors_bars_logs_and_warnings_are_lines(text, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    with at_terminal():
        say_error("verify", ValueError(f"{text}: wrong"))
        logging.getLogger("imagetext.readers.tars").warning("%s: %s", "a.tar", text)
        logging.getLogger("transformers").error(text)
        warnings.warn(f"{text}!", stacklevel=1)
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logging.getLogger("generate.runs.protocol").exception("failed")
        with Progress(desc=text, total=2, mininterval=0, ascii=True) as progress:
            progress.set_description(text)
            progress.update()
    error_text = capsys.readouterr().err
    assert "a.tar: " in error_text and "UserWarning: " in error_text and "RuntimeError: " in error_text
    bars, lines = error_text.split("\r")[1:], error_text.partition("\r")[0].splitlines()
    assert all(map(is_harmless, lines)) and all(
        is_harmless(bar.removesuffix("\n").removesuffix("\x1b[A")) for bar in bars
    )
    assert all(
        line.startswith(("capsmith verify: error: ", "a.tar: ", "UserWarning: ", "failed", "  "))
        or line == reason(text)
        for line in lines
    )


def test_the_note_behind_a_bar_is_made_only_when_the_bar_is_drawn(capsys):
    class Note:
        made = 0

        def __str__(self) -> str:
            self.made += 1
            return f"note {progress.n}"

    note = Note()
    with Progress(total=1000, mininterval=3600, ascii=True) as progress:
        progress.note = note
        for _ in range(1000):
            progress.update()
    assert note.made == 1
    assert "note 1000" in capsys.readouterr().err


def test_afterwards_logs_are_as_before():
    before = logging.getLogRecordFactory(), warnings.showwarning, list(logging.root.handlers)
    with at_terminal():
        pass
    assert (logging.getLogRecordFactory(), warnings.showwarning, logging.root.handlers) == before


def test_a_librarys_error_is_one_line_without_advice(capsys):
    for code, message in (
        ("raise ValueError('no\\nway. Run pip install evil.')", "no way."),
        ("raise OSError()", "OSError"),
    ):
        try:
            exec(code, {"__name__": "transformers.models"})
        except (ValueError, OSError) as error:
            say_error("finetune", error)
        assert capsys.readouterr().err == f"capsmith finetune: error: {message}\n"
    say_error("finetune", ValueError("two problems:\n  one\nother"))
    assert capsys.readouterr().err == "capsmith finetune: error: two problems:\n  one\n  other\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_just_the_text(text):
    within = in_markdown(text)
    page = MarkdownIt("gfm-like", {"linkify": False}).parse(
        f"| a |\n| --- |\n| {within} |\n\n{within}\n\n- {within}\n\n# {within}\n"
    )
    line = " ".join(on_line(text).split())
    texts = ["".join(child.content for child in token.children) for token in page if token.type == "inline"]
    assert texts == ["a", line, line, line, line]
    kinds = {token.type for token in page} | {child.type for token in page for child in token.children or ()}
    assert kinds <= {
        f"{kind}_{end}"
        for kind in ("table", "thead", "tbody", "tr", "th", "td", "paragraph", "bullet_list", "list_item", "heading")
        for end in ("open", "close")
    } | {"inline", "text", "text_special"}
    assert [token.tag for token in page if token.type == "heading_open"] == ["h1"] and sum(
        token.type == "list_item_open" for token in page
    ) == 1


def test_a_page_escapes_all_text_and_obeys_none(tmp_path):
    (tmp_path / "x.html").write_text(
        '<meta content="{{ policy }}"><p title="{{ text }}">{{ text }}</p><script>{{ script }}</script>'
    )
    (tmp_path / "x.js").write_text("let a = 1 && 2;")
    for text in HOSTILE:
        page = render_page(tmp_path / "x.html", text=text)
        assert page.count("<") == 5 and "\u202e" not in page and "\u2066" not in page and "\x1b" not in page
        page.encode()
    assert "let a = 1 && 2;" in page and "script-src 'sha256-" in page and "default-src 'none'" in page
    assert "***host" in render_page(tmp_path / "x.html", text="https://me:pass@host")


class Unread(io.StringIO):
    """A pipe whose reader has gone."""

    def __init__(self, path: Path):
        super().__init__()
        self.under = open(path, "w")

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        return self.under.fileno()


def test_where_nobody_reads_any_more_the_program_ends_quietly(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        say("a", file=Unread(tmp_path / "x"))
    assert ended.value.code == NOBODY_READS == 141
    monkeypatch.setattr(sys, "stderr", Unread(tmp_path / "y"))
    with pytest.raises(SystemExit) as ended:
        Progress(desc="a", total=1)
    assert ended.value.code == NOBODY_READS


def test_a_command_whose_reader_has_gone_has_the_usual_code():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "capsmith", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (NOBODY_READS, "")


@pytest.mark.parametrize("room", ["captioners", "diversity", "finetune", "generate", "imagetext", "quickstart.py"])
def test_all_rooms_speak_through_one_file(room):
    """Lines are printed, bars drawn and templates filled only there."""
    root = Path(__file__).parents[2]
    files = [root / room] if room.endswith(".py") else (root / room).rglob("*.py")
    for path in files:
        text = path.read_text(encoding="utf-8")
        if path.name != "shown.py":
            assert not re.search(r"(?<![\w.])print\(|state\.print|import tqdm|std(out|err)\.write", text), path
        if path.name not in ("pages.py", "cards.py", "sandbox.py", "templates.py"):  # of pages, cards and instructions
            assert not re.search(r"^(from|import) jinja2", text, re.MULTILINE), path


def test_yaml_has_texts_of_several_lines_as_they_are_written_and_gives_them_back():
    values = {
        "a": "Say: {{ text }}\n  - again =>\n",
        "b": "ends in a blank \nx\n\n",
        "c": "é: x",
        "d": "\ufeff\t\n\x07",
        "e": [1e-5, None],
    }
    written = in_yaml(values)
    assert yaml.safe_load(written) == values
    assert written.startswith("a: |\n  Say: {{ text }}\n    - again =>\n")
