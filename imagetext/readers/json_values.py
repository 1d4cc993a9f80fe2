"""JSON that is not one value on each line: the elements of an array, or pairs of an object, larger than memory."""

import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from imagetext import limits
from imagetext.readers.text_layout import Layout, read_layout
from imagetext.readers.text_lines import WINDOW, check_blank, readable

_BETWEEN, _SPACE = re.compile(r"[\s,]*"), re.compile(r"\s*")


class _Window:
    """A part of a file of JSON values that moves forwards.

    It is decoded as Latin-1, in which each byte is a character, so that `json` returns the ends of values in bytes.

    size: bytes that are read at a time. A larger value makes the window grow until the value ends.
    """

    def __init__(self, path: str, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size
        self.decode = json.JSONDecoder().raw_decode
        self.text, self.index = "", 0  # the part of the file, and the next character in it
        self.ahead = ""  # what was read of the file behind that part
        self.position, self.line = file.tell(), 1  # offset and line of the first character of the text

    def read_more(self) -> bool:
        """Read another block and drop the text before the index. Return False at the end of the file."""
        size = max(self.size, len(self.text) - self.index)
        block, self.ahead = self.ahead[:size], self.ahead[size:]
        block = block or self.file.read(size).decode("latin-1")
        self.position, self.line = self.position + self.index, self.current_line()
        self.text, self.index = self.text[self.index :] + block, 0
        return bool(block)

    def next_character(self, between: re.Pattern[str] = _SPACE) -> str:
        """The next character after those that `between` matches; "" at the end of the file.

        Raises ValueError for too many blanks.
        """
        start = self.position + self.index
        while True:
            if match := between.match(self.text, self.index):
                self.index = match.end()
            if self.index < len(self.text):
                return self.text[self.index]
            if not self.read_more():
                return ""
            check_blank(self.path, 0, self.position - start)

    def value(self) -> str | ValueError:
        """The text of the value that begins at the index, or what is wrong with it.

        Raises ValueError, which names the line, if no value begins there.
        """
        while True:
            text, begin = self.text, self.index
            try:
                if len(text) - begin > limits.VALUES:
                    if sum(text.count(mark, begin) for mark in ",[{") > limits.VALUES:
                        raise ValueError(f"JSON of more than {limits.VALUES:,} values")
                _, end = self.decode(text, begin)
            except json.JSONDecodeError as error:
                line = self.line + error.lineno - 1
                is_long = len(text) - begin >= limits.LINE
                if not is_long and self.read_more():
                    continue
                limit = f"; or it has more than the {limits.LINE:,} bytes that are read of a value" if is_long else ""
                raise ValueError(f"{self.path}: line {line:,}: not JSON: {error.msg}{limit}") from error
            except (RecursionError, ValueError) as error:  # for example a number of too many digits
                raise ValueError(f"{self.path}: line {self.current_line():,}: {error}") from error
            if end == len(text) and self.read_more():
                continue  # the value may be longer, for example a number
            self.index = end
            if len(text) - end > self.size:  # the window grew for this value, and is too large for those after it
                rest = end + self.size
                self.text, self.ahead = text[:rest], text[rest:] + self.ahead
            if end - begin > limits.LINE:
                return ValueError(f"{end - begin:,} bytes, more than {limits.LINE:,}")
            return readable(text[begin:end].encode("latin-1"))

    def current_line(self) -> int:
        return self.line + self.text.count("\n", 0, self.index)


def array_records(
    path: str, file: BinaryIO, layout: Layout, *, window_size: int
) -> Iterator[tuple[int, str | ValueError]]:
    """Yield the end and the text of each element of an array, or of values in sequence, from the current position."""
    window = _Window(path, file, window_size)
    may_open = window.position == layout.start  # whether a `[` here opens an array of rows
    is_open = False
    while mark := window.next_character(_BETWEEN):
        if mark == "]" or mark == "[" and may_open:
            may_open, is_open = mark == "]", mark == "["
            window.index += 1
            continue
        may_open = False
        text = window.value()
        yield window.position + window.index, text
    if is_open:
        raise ValueError(f"{path}: is cut: the array has no end")


def object_pairs(path: str, file: BinaryIO) -> Iterator[tuple[str, str] | ValueError]:
    """Yield the names and values of a JSON object as JSON texts, or what is wrong with a pair.

    The object may be larger than memory. Raises ValueError, which names the line, if it cannot be read any further.
    """
    file.seek(read_layout(path, file, kind=".json", usual=()).start)
    window = _Window(path, file, WINDOW)

    def skip(expected: str) -> str:
        mark = window.next_character()
        if not mark:
            raise ValueError(f"{path}: is cut: the object has no end")
        if mark not in expected:
            problem = f"expected {' or '.join(expected)}, got {mark}"
            raise ValueError(f"{path}: line {window.current_line():,}: not JSON: {problem}")
        window.index += 1
        return mark

    skip("{")
    while window.next_character() != "}":
        name = window.value()
        skip(":")
        window.next_character()
        value = window.value()
        if isinstance(name, ValueError):
            yield name
        elif isinstance(value, ValueError):
            yield value
        else:
            yield name, value
        if skip(",}") == "}":
            return
