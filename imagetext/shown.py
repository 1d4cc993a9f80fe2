"""Text for people: words of data, servers and libraries steer no terminal, hold no secret and advise nobody to run code.

The terminal gets lines by `say`, bars by `Progress`, and logs and warnings as `at_terminal` has them; Markdown gets `in_markdown`.
HTML is made in `imagetext.pages`, cards in `imagetext.cards`.
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
NOBODY_READS = 141  # the exit code of a program whose reader has gone, as of `| head`
MOST = 10_000  # characters of a line
MOST_SAID = 400  # of what a library says
SECRET_LENGTH = 8  # a shorter word is no secret

TURNS = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # marks that turn the direction of writing
BREAKS = dict.fromkeys([*range(9, 14), 0x85, 0x2028, 0x2029], " ")
CONTROLS = {*range(32), *range(127, 160), *range(0xD800, 0xE000), *range(0xFFF9, 0xFFFC)} - {
    *BREAKS
}  # and halves of characters
OBEYED = dict.fromkeys(CONTROLS, " ") | dict.fromkeys(TURNS)  # what a terminal or a page would obey
SECRETS = (  # pattern, and what stands in its place
    (r"(?i:\bbearer)\s+(?:(?=\S*\d)[^\s\"',;]{6,}|[\w.~+/-]{20,}=*)", "***"),
    (
        r"(?<![\w/.-])(?:sk|xai|pplx|nvapi)-(?:(?:[a-z]{1,10}\d{0,2}-){0,3}(?!\d{1,8}\b)(?:(?=[\w*]*[\d*])[\w*]{8,}|[\w*]{16,})[\w*-]*"
        r"|(?=[\w*-]*\d)(?=[\w*-]*[A-Z])[\w*-]{20,})",
        "***",
    ),
    (
        r"(?<![\w/.-])(?:hf_[A-Za-z0-9*]{12,}|gsk_[\w*]{8,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,})",
        "***",
    ),
    (r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)", "***"),
    (r"(?<=://)[^\s/?#]{1,500}@", "***"),
    (
        r"(?i)([?&;](?:[\w.-]{0,40}(?:signature|credential|token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key)[\w.-]{0,40}"
        r"|sig|key|auth)=)[^&\s\"'<>]+",
        r"\1***",
    ),
    (
        r"(?i)((?:\bauthorization|api[ _-]?key(?: provided)?|secret[_-]?(?:access[_-]?)?key|access[_-]?key[_-]?id|session[_-]?token|"
        r"access[_-]?token|auth[_-]?token|client[_-]?secret|passw(?:or)?d)[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:(?:basic|bearer|token)\s+)?+)"
        r"(?=[^\s\"',;&}]*[^*\s\"',;&}])[^\s\"',;&}]{4,}",
        r"\1***",
    ),
)
ITS_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)  # of a variable that holds a secret
ADVICE = re.compile(
    r"trust_remote_code\W{0,4}(?:=|to|as)\W{0,4}True|weights_only\W{0,4}(?:=|set to|to)\W{0,4}False|"
    r"allow_pickle\W{0,4}(?:=|to)\W{0,4}True|use_safetensors\W{0,4}(?:=|to)\W{0,4}False|safe_globals",
    re.IGNORECASE,
)
UNSAFE = re.compile(
    r"trust_remote_code|weights_only|use_safetensors|allow_pickle|safe_globals|arbitrary code|pip3? install",
    re.IGNORECASE,
)
CODE = re.compile(r"(custom|remote) code", re.IGNORECASE)
REFUSED = "it asks for code of its own to be run, which is never done"


# ---- text --------------------------------------------------------------------------------------------------------


def neutral(text: str) -> str:
    """The text without what a terminal or a page would obey; its line breaks stay."""
    return text.translate(OBEYED)


def masked(text: str) -> str:
    """The text without secrets: those in this process's environment, and what looks like one."""
    if not text:  # as most errors are, one a record
        return ""
    for name, value in os.environ.items():
        if len(value) >= SECRET_LENGTH and value in text and ITS_NAME.search(name):
            text = text.replace(value, "***")
    for pattern, instead in SECRETS:
        text = re.sub(pattern, instead, text)
    return text


def masked_values(value: Any) -> Any:
    """A value of JSON's types whose texts are without secrets; the names of its fields stay."""
    if isinstance(value, Mapping):
        return {name: masked_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return list(map(masked_values, value))
    return masked(value) if isinstance(value, str) else value


def on_line(text: str) -> str:
    """The text as one line of a terminal, a log or a Markdown file: it obeys nothing, holds no secret, and has an end."""
    text = masked(neutral(text[: 2 * MOST])).translate(BREAKS)
    if ADVICE.search(text):
        text = _without(ADVICE, text) or REFUSED
    return text if len(text) <= MOST else f"{text[:MOST]}…"


def reason(error: object, most: int = MOST_SAID) -> str:
    """The words of a library or a server in one short line, without advice to let code run."""
    text = " ".join(on_line(str(error)).split()) or isinstance(error, BaseException) * type(error).__name__
    said = _without(UNSAFE, text)
    if text and not said or CODE.search(text):
        return REFUSED
    return said if len(said) <= most else f"{said[:most]}…"


def _without(pattern: re.Pattern, text: str) -> str:
    return " ".join(sentence for sentence in re.split(r"(?<=[.!?:])\s+", text) if not pattern.search(sentence))


def in_markdown(value: object) -> str:
    """A value as Markdown that shows just that, on one line, so that in a table it stays in its cell."""
    text = re.sub(r"([\\`*_\[\]<>#|~$&@])", r"\\\1", " ".join(on_line(str(value)).split()))
    return re.sub(r"^(\d{0,9})([-+=.)])(?=[-=\s]|$)", r"\1\\\2", text)  # else a list, a line, or a heading


def in_yaml(values: object) -> str:
    """Values as YAML, in which texts of several lines stand as they are written."""
    import yaml  # late: few need it

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Dumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


# ---- the terminal ------------------------------------------------------------------------------------------------


def say(*lines: object, file: TextIO | None = None) -> None:
    """Prints each as one line, to the standard output unless told otherwise; where nobody reads any more, the program ends."""
    file = file or sys.stdout
    if file is None:  # closed
        return
    code = file.encoding or "utf-8"
    try:
        for line in lines:
            file.write(on_line(str(line)).encode(code, "replace").decode(code) + "\n")
        file.flush()
    except BrokenPipeError:
        end_unread(file)


def say_file(text: str) -> None:
    """Prints a text as it stands, as of a file that somebody keeps."""
    print(text, end="")


def lines_of(error: BaseException) -> list[str]:
    """The lines of an error: our own as they are, a library's in one, without advice."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames and frames[-1].f_globals.get("__name__", "").partition(".")[0] not in ROOMS:
        return [reason(error)]
    first, *others = (str(error) or type(error).__name__).split("\n")
    return [first, *(f"  {line.strip()}" for line in others)]  # so that none of them looks like a message of its own


def say_error(command: str, error: BaseException) -> None:
    """Says, on the standard error, why a command ended."""
    first, *others = lines_of(error)
    say(f"capsmith {command}: error: {first}", *others, file=sys.stderr)


class Progress(tqdm):
    """A progress bar whose words may be those of data."""

    @property
    def format_dict(self) -> dict[str, Any]:
        fields = super().format_dict
        return {**fields, "prefix": on_line(fields["prefix"] or "")}

    def display(self, *args: Any, **options: Any) -> Any:
        try:
            return super().display(*args, **options)
        except BrokenPipeError:
            end_unread(sys.stderr)


@contextmanager
def at_terminal() -> Iterator[None]:
    """Within the block, logs and warnings of all libraries are one line each, as `on_line` has it.

    From then on, so are the lines of a traceback with which the program ends.
    """
    sys.excepthook = _say_traceback
    factory, showwarning, root = logging.getLogRecordFactory(), warnings.showwarning, logging.getLogger()
    handler = None if root.handlers else logging.lastResort
    logging.setLogRecordFactory(_Said)
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
        say()  # what others have printed goes out


class _Said(logging.LogRecord):
    """A log record as people see it; a traceback follows in indented lines."""

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


def end_unread(file: TextIO) -> NoReturn:
    """Ends the program as those end whose reader has gone; no `except Exception` on the way takes that for a fault."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # what is left in its buffer goes there
    raise SystemExit(NOBODY_READS) from None
