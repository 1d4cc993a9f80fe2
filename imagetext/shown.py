"""Text for people.

Words of data, servers and libraries cannot control the terminal, show a secret or advise to run code.

Lines are printed by `say`, bars are `Progress`, logs and warnings pass through `at_terminal`, values in Markdown
through `in_markdown`. HTML is made in `imagetext.pages`, cards in `imagetext.cards`.
"""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

ROOMS = ("__main__", "captioners", "capsmith", "diversity", "finetune", "generate", "imagetext", "quickstart")
NOBODY_READS = 141  # exit code of a program whose reader has gone, as in `| head`: 128 + SIGPIPE
MOST = 10_000  # characters of a line
MOST_OF_LIBRARY = 400  # characters of a library's or server's message
SECRET_LENGTH = 8  # characters; a shorter value is not taken for a secret

TURNS = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # characters that turn the direction of writing
BREAKS = dict.fromkeys([*range(9, 14), 0x85, 0x2028, 0x2029], " ")
# control characters, lone surrogates and annotation marks, without line breaks
CONTROLS = {*range(32), *range(127, 160), *range(0xD800, 0xE000), *range(0xFFF9, 0xFFFC)} - {*BREAKS}
NEUTRAL = dict.fromkeys(CONTROLS, " ") | dict.fromkeys(TURNS)  # replaces what would control a terminal or a page
SECRETS = (  # pattern and replacement
    (r"(?i:\bbearer)\s+(?:(?=\S*\d)[^\s\"',;]{6,}|[\w.~+/-]{20,}=*)", "***"),
    (
        r"(?<![\w/.-])(?:sk|xai|pplx|nvapi)-"
        r"(?:(?:[a-z]{1,10}\d{0,2}-){0,3}(?!\d{1,8}\b)(?:(?=[\w*]*[\d*])[\w*]{8,}|[\w*]{16,})[\w*-]*"
        r"|(?=[\w*-]*\d)(?=[\w*-]*[A-Z])[\w*-]{20,})",
        "***",
    ),
    (
        r"(?<![\w/.-])(?:hf_[A-Za-z0-9*]{12,}|gsk_[\w*]{8,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
        r"|xox[abprs]-[\w-]{10,})",
        "***",
    ),
    (r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)", "***"),
    (r"(?<=://)[^\s/?#]{1,500}@", "***"),
    (
        r"(?i)([?&;](?:[\w.-]{0,40}"
        r"(?:signature|credential|token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key)[\w.-]{0,40}"
        r"|sig|key|auth)=)[^&\s\"'<>]+",
        r"\1***",
    ),
    (
        r"(?i)((?:\bauthorization|api[ _-]?key(?: provided)?|secret[_-]?(?:access[_-]?)?key|access[_-]?key[_-]?id"
        r"|session[_-]?token|access[_-]?token|auth[_-]?token|client[_-]?secret|passw(?:or)?d)"
        r"[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:(?:basic|bearer|token)\s+)?+)"
        r"(?=[^\s\"',;&}]*[^*\s\"',;&}])[^\s\"',;&}]{4,}",
        r"\1***",
    ),
)
# names of environment variables that hold a secret
SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
ADVICE = re.compile(  # advice to allow code, which is removed from every line
    r"trust_remote_code\W{0,4}(?:=|to|as)\W{0,4}True|weights_only\W{0,4}(?:=|set to|to)\W{0,4}False|"
    r"allow_pickle\W{0,4}(?:=|to)\W{0,4}True|use_safetensors\W{0,4}(?:=|to)\W{0,4}False|safe_globals",
    re.IGNORECASE,
)
UNSAFE = re.compile(  # what is also removed from messages of libraries and servers
    r"trust_remote_code|weights_only|use_safetensors|allow_pickle|safe_globals|arbitrary code|pip3? install",
    re.IGNORECASE,
)
CODE = re.compile(r"(custom|remote) code", re.IGNORECASE)
REFUSED = "it asks for code of its own to be run, which is never done"


# ---- text --------------------------------------------------------------------------------------------------------


def neutral(text: str) -> str:
    """The text without characters that control a terminal or a page. Line breaks stay."""
    return text.translate(NEUTRAL)


def masked(text: str) -> str:
    """The text without secrets: those in the environment of this process, and all that look like one."""
    if not text:  # quick, because the errors of most records are empty
        return ""
    for name, value in os.environ.items():
        if len(value) >= SECRET_LENGTH and value in text and SECRET_NAME.search(name):
            text = text.replace(value, "***")
    for pattern, replacement in SECRETS:
        text = re.sub(pattern, replacement, text)
    return text


def masked_values(value: Any) -> Any:
    """A value of JSON's types without secrets in its texts. The names of fields stay."""
    if isinstance(value, Mapping):
        return {name: masked_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return list(map(masked_values, value))
    return masked(value) if isinstance(value, str) else value


def on_line(text: str) -> str:
    """The text as one line of at most MOST characters for a terminal, a log or Markdown.

    It has no control characters, secrets or advice to allow code.
    """
    text = masked(neutral(text[: 2 * MOST])).translate(BREAKS)
    if ADVICE.search(text):
        text = _without(ADVICE, text) or REFUSED
    return text if len(text) <= MOST else f"{text[:MOST]}…"


def reason(error: object, most: int = MOST_OF_LIBRARY) -> str:
    """The message of a library or a server on one short line, without advice to allow code."""
    text = " ".join(on_line(str(error)).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    safe = _without(UNSAFE, text)
    if text and not safe or CODE.search(text):
        return REFUSED
    return safe if len(safe) <= most else f"{safe[:most]}…"


def _without(pattern: re.Pattern, text: str) -> str:
    """The text without the sentences that match a pattern."""
    return " ".join(sentence for sentence in re.split(r"(?<=[.!?:])\s+", text) if not pattern.search(sentence))


def counted(count: int, noun: str) -> str:
    """A number of things in words: 1 shard, 2 shards."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_markdown(value: object) -> str:
    """A value as Markdown that shows exactly its text, on one line, so that it stays in its cell of a table."""
    text = re.sub(r"([\\`*_\[\]<>#|~$&@])", r"\\\1", " ".join(on_line(str(value)).split()))
    # The beginning of a line could make it a list, a rule or a heading.
    return re.sub(r"^(\d{0,9})([-+=.)])(?=[-=\s]|$)", r"\1\\\2", text)


def in_yaml(values: object) -> str:
    """Values as YAML, with texts of several lines in block style."""
    import yaml  # imported late, because few commands need it

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Dumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


# ---- the terminal ------------------------------------------------------------------------------------------------


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print each value as one line, to `file` (default: standard output). If the reader has gone, the program ends."""
    file = file or sys.stdout
    if file is None:  # standard output is closed
        return
    code = file.encoding or "utf-8"
    try:
        for line in lines:
            file.write(on_line(str(line)).encode(code, "replace").decode(code) + "\n")
        file.flush()
    except BrokenPipeError:
        exit_without_reader(file)


def say_file(text: str) -> None:
    """Print a text unchanged, as the content of a file."""
    print(text, end="")


def lines_of(error: BaseException) -> list[str]:
    """The lines of an error of capsmith, unchanged, or an error of a library as one line, without advice."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames and frames[-1].f_globals.get("__name__", "").partition(".")[0] not in ROOMS:
        return [reason(error)]
    first, *others = (str(error) or type(error).__name__).split("\n")
    return [first, *(f"  {line.strip()}" for line in others)]  # indented, to belong visibly to the first line


def say_error(command: str, error: BaseException) -> None:
    """Print to standard error why a command ended."""
    first, *others = lines_of(error)
    say(f"capsmith {command}: error: {first}", *others, file=sys.stderr)


class Progress(tqdm):
    """A progress bar whose description may come from data.

    note: what is shown behind the bar, as its text is whenever the bar is drawn.
    """

    note: Any = None

    @property
    def format_dict(self) -> dict[str, Any]:
        fields = super().format_dict
        postfix = fields["postfix"] if self.note is None else str(self.note)
        return {**fields, "prefix": on_line(fields["prefix"] or ""), "postfix": postfix}

    def display(self, *args: Any, **options: Any) -> Any:
        try:
            return super().display(*args, **options)
        except BrokenPipeError:
            exit_without_reader(sys.stderr)


@contextmanager
def at_terminal() -> Iterator[None]:
    """In the block, each log record and warning of any library is made one safe line by `on_line`.

    From then on, this also holds for the lines of a traceback with which the program ends.
    """
    sys.excepthook = _say_traceback
    factory, showwarning, root = logging.getLogRecordFactory(), warnings.showwarning, logging.getLogger()
    handler = None if root.handlers else logging.lastResort
    logging.setLogRecordFactory(_SafeLogRecord)
    warnings.showwarning = _warn
    if handler:
        root.addHandler(handler)
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        warnings.showwarning = showwarning
        if handler:
            root.removeHandler(handler)
        say()  # flushes what libraries have printed


class _SafeLogRecord(logging.LogRecord):
    """A log record whose message is one safe line; a traceback follows in indented lines."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[1]:
            self.exc_text = "\n".join(_traceback_of(self.exc_info[1]))

    def getMessage(self) -> str:
        text = super().getMessage()
        return on_line(text) if self.name.partition(".")[0] in ROOMS else reason(text)


def _traceback_of(error: BaseException) -> list[str]:
    return [f"  {on_line(line)}" for line in "".join(traceback.format_exception(error)).splitlines()]


def _say_traceback(_: type[BaseException], error: BaseException, __: Any) -> None:
    say(*_traceback_of(error), file=sys.stderr)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)


def exit_without_reader(file: TextIO) -> NoReturn:
    """End the program, because the reader of its output has gone.

    SystemExit, because no `except Exception` catches it.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # takes what is still buffered
    raise SystemExit(NOBODY_READS) from None
