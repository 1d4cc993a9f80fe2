"""JSON values that are no lines: the elements of an array, or the pairs of an object, that may be larger than memory."""

import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from imagetext import limits
from imagetext.readers.text_layout import Layout, read_layout
from imagetext.readers.text_lines import WINDOW, check_blank, readable

_BETWEEN, _SPACE = re.compile(r"[\s,]*"), re.compile(r"\s*")


class _Window:
    """A piece of a file of JSON values at a time, of so many bytes at first.

    It is decoded as Latin-1, in which a byte is a character, so that `json` says where each value ends in bytes.
    """

    def __init__(self, path: str, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size
        self.decode = json.JSONDecoder().raw_decode
        self.text, self.at, self.position, self.line = "", 0, file.tell(), 1  # place of, and line at, the first byte

    def more(self) -> bool:
        """Reads on, and forgets what is passed; False at the end of the file."""
        block = self.file.read(max(self.size, len(self.text) - self.at))
        self.position, self.line = self.position + self.at, self.line + self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + block.decode("latin-1"), 0
        return bool(block)

    def mark(self, between: re.Pattern[str] = _SPACE) -> str:
        """The next character that is not between values; "" at the end of the file. Raises ValueError where blanks do not end."""
        start = self.position + self.at
        while True:
            if passed := between.match(self.text, self.at):
                self.at = passed.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""
            check_blank(self.path, 0, self.position - start)

    def value(self) -> str | ValueError:
        """The text of the value that begins here, or what is wrong with it; raises ValueError, with the line, where none does."""
        while True:
            text, begin = self.text, self.at
            try:
                if (
                    len(text) - begin > limits.VALUES
                    and sum(text.count(mark, begin) for mark in ",[{") > limits.VALUES
                ):
                    raise ValueError(f"JSON of more than {limits.VALUES:,} values")
                _, end = self.decode(text, begin)
            except json.JSONDecodeError as error:
                here = self.line + error.lineno - 1
                if len(text) - begin < limits.LINE and self.more():
                    continue
                raise ValueError(f"{self.path}: line {here:,}: not JSON: {error.msg}") from error
            except (RecursionError, ValueError) as error:  # a number of too many digits
                raise ValueError(f"{self.path}: line {self.here():,}: {error}") from error
            if end == len(text) and self.more():
                continue  # it may go on: a number, say
            self.at = end
            if end - begin > limits.LINE:
                return ValueError(f"{end - begin:,} bytes, more than {limits.LINE:,}")
            return readable(text[begin:end].encode("latin-1"))

    def here(self) -> int:
        """The line that is read."""
        return self.line + self.text.count("\n", 0, self.at)


def array_records(path: str, file: BinaryIO, layout: Layout, size: int) -> Iterator[tuple[int, str | ValueError]]:
    """The elements of arrays, or values, one after another."""
    window = _Window(path, file, size)
    # whether a `[` here opens an array of rows, and whether one is open
    opens, bracket = window.position == layout.start, False
    while mark := window.mark(_BETWEEN):
        if mark == "]" or mark == "[" and opens:
            opens, bracket, window.at = mark == "]", mark == "[", window.at + 1
            continue
        opens = False
        text = window.value()
        yield window.position + window.at, text
    if bracket:
        raise ValueError(f"{path}: is cut: the array has no end")


def object_pairs(path: str, file: BinaryIO) -> Iterator[tuple[str, str] | ValueError]:
    """The names and values of a JSON object, which may be larger than memory, as JSON texts, or what is wrong with a pair.

    Raises ValueError, with the line, where the object cannot be read on.
    """
    file.seek(read_layout(path, file, ".json", ()).start)
    window = _Window(path, file, WINDOW)

    def passed(marks: str) -> str:
        mark = window.mark()
        if not mark:
            raise ValueError(f"{path}: is cut: the object has no end")
        if mark not in marks:
            raise ValueError(f"{path}: line {window.here():,}: not JSON: expected {' or '.join(marks)}, got {mark}")
        window.at += 1
        return mark

    passed("{")
    while window.mark() != "}":
        name = window.value()
        passed(":")
        window.mark()
        value = window.value()
        if isinstance(name, ValueError):
            yield name
        elif isinstance(value, ValueError):
            yield value
        else:
            yield name, value
        if passed(",}") == "}":
            return
