"""Tables of text: quotation marks, encodings, delimiters, arrays. A broken row is the only one that is lost."""

import csv
import gzip
import io
import json
import time

import pytest

from imagetext import limits
from imagetext.readers import text_tables
from imagetext.readers.tables import split_rows
from imagetext.sources import read_records, read_samples


def rows(path):
    return [
        row if isinstance(row, dict) else str(row) for piece in split_rows(str(path)) for _, row in piece.numbered()
    ]


def texts(path):
    return [row["text"] if isinstance(row, dict) else row for row in rows(path)]


HEADER = "image,text\n"


@pytest.mark.parametrize(
    "lines, expected",
    [
        (
            ['0.jpg,"Unbalanced', "1.jpg,plain", '2.jpg,ends it" here', "3.jpg,last"],
            ['"Unbalanced', "plain", 'ends it" here', "last"],
        ),
        (
            ['0.jpg,"Unbalanced', "1.jpg,plain", '2.jpg,ends it"', "3.jpg,last"],
            ['"Unbalanced', "plain", 'ends it"', "last"],
        ),
        (['0.jpg,"Unbalanced', "1.jpg,plain", "3.jpg,last"], ['"Unbalanced', "plain", "last"]),
        (
            ['0.jpg,"Hello" said the man', '1.jpg,5" nails', '2.jpg,"whole"'],
            ['"Hello" said the man', '5" nails', '"whole"'],
        ),
        # quotation marks that a CSV writer wrote
        (
            ['0.jpg,"a dog, running"', '1.jpg,"Unbalanced', '2.jpg,"a cat, sitting"', "3.jpg,last"],
            ["a dog, running", '"Unbalanced', "a cat, sitting", "last"],
        ),
        (
            ['0.jpg,"He said ""hi"""', '1.jpg,"two\nlines, of text"', '2.jpg,"Then,\nit sleeps"'],
            ['He said "hi"', "two\nlines, of text", "Then,\nit sleeps"],
        ),
        (['"0.jpg","a"', '"1.jpg","b', '"2.jpg","c"', '"3.jpg","d"'], ["a", '"b', "c", "d"]),
        (
            ['"0.jpg","a"', '"1.jpg","b" or c, d', '"2.jpg","c"'],
            ["a", "not a line of CSV: ',' expected after '\"'", "c"],
        ),
        (
            ["0.jpg,a", "1.jpg,b,c", "2.jpg", "3.jpg,d,,"],
            ["a", "3 cells, but the header has 2", "1 cells, but the header has 2", "d"],
        ),
        (["0.jpg,a", ",", "", "1.jpg,b"], ["a", "b"]),
    ],
)
def test_a_quotation_mark_costs_no_other_row(tmp_path, lines, expected):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "\n".join(lines))
    assert texts(path) == expected
    path = tmp_path / "t.tsv"
    if not any(", " in line for line in lines):
        path.write_text((HEADER + "\n".join(lines)).replace(",", "\t"))
        assert [text.replace("'\t'", "','") for text in texts(path)] == expected


def test_a_stray_mark_in_a_long_table_costs_no_other_row(tmp_path, caplog):
    for spoilt in (0, 700, 1500, 2499):
        lines = [f"{number}.jpg\tcaption {number}" for number in range(2500)]
        lines[spoilt] = f'{spoilt}.jpg\t"caption {spoilt}'
        lines[2000] = '2000.jpg\tcaption 2000"'
        (tmp_path / "t.tsv").write_text("image\ttext\n" + "\n".join(lines))
        result = texts(tmp_path / "t.tsv")
        assert len(result) == 2500 and result[spoilt] == f'"caption {spoilt}' and result[2499].endswith("caption 2499")
        assert f"row {spoilt + 1:,} begins a cell with a quotation mark" in caplog.text


def test_what_csv_writes_is_read_as_csv_reads_it(tmp_path):
    cells = ["a", "", 'q"q', '"', '""', "a,b", "l\nm", "l\r\nm, n", " s ", "'", "é", "\t", ";", "x" * 50]
    for dialect in ("excel", "unix"):
        buffer = io.StringIO()
        csv.writer(buffer, dialect).writerows(
            [["id", "text", "c"]] + [[n, cell, "z"] for n, cell in enumerate(cells * 3)]
        )
        (tmp_path / "t.csv").write_text(buffer.getvalue(), newline="")
        assert texts(tmp_path / "t.csv") == cells * 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_encodings_by_their_marks(tmp_path, monkeypatch, encoding, name):
    monkeypatch.setattr("imagetext.readers.table_pieces.ROWS_PER_SHARD", 2)
    lines = [f"Zoë's 猫 {number} 🐈, \u2028end" for number in range(5)]
    text = (
        HEADER + "".join(f'{n}.jpg,"{line}"\n' for n, line in enumerate(lines))
        if name == "t.csv"
        else "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    )
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    assert texts(tmp_path / name) == lines
    assert len(split_rows(str(tmp_path / name))) == 3


def test_text_that_is_no_utf8_is_told_with_its_line(tmp_path, caplog):
    (tmp_path / "t.csv").write_bytes(b"image,text\n0.jpg,a\n1.jpg,caf\xe9\n2.jpg,na\xefve\n3.jpg,caf\xc3\xa9\n")
    assert texts(tmp_path / "t.csv") == ["a", "caf\ufffd", "na\ufffdve", "café"]
    assert "line 3 is not UTF-8, nor are 1 more" in caplog.text
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    assert texts(tmp_path / "t.jsonl") == ["caf\ufffd"] and "t.jsonl: line 1 is not UTF-8;" in caplog.text


@pytest.mark.parametrize(
    "data, message",
    [
        ("image,text\n0.jpg,a\n".encode("utf-16-le"), "UTF-16 without its mark"),
        (b"image,text\r0.jpg,a\r", "carriage returns only"),
        ("\ufeffimage,text\n0.jpg,a\n".encode("utf-16-le") + b"\0", "not valid UTF-16"),
        (b'image,"text\n0.jpg,a', "header"),
    ],
)
def test_what_cannot_be_read_as_text_is_refused(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=f"t.csv: .*{message}"):
        split_rows(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", "image;text\n0.jpg;a, b\n"),
        ("t.csv", "image\ttext\n0.jpg\ta, b\n"),
        ("t.tsv", 'image,text\n0.jpg,"a, b"\n'),
        ("t.csv", "image| n| text\n0.jpg| 0| a, b \n"),
        ("t.csv", "sep=;\r\nimage;text\r\n0.jpg;a, b\r\n"),
        ("t.tsv", "image;text\n0.jpg;a, b"),
    ],
)
def test_delimiters_other_than_the_suffixs_are_read_and_told(tmp_path, caplog, name, text):
    (tmp_path / name).write_text(text)
    (row,) = rows(tmp_path / name)
    assert (row["image"], row["text"]) == ("0.jpg", "a, b")
    assert ("its cells are separated by" in caplog.text) != text.startswith("sep")


def test_a_long_run_of_digits_is_judged_in_linear_time(tmp_path):
    (tmp_path / "t.csv").write_text(f'{HEADER}0.jpg,"two\n{"1" * 20_000} a,lines"\n')
    started = time.process_time()
    assert len(rows(tmp_path / "t.csv")) == 1 and time.process_time() - started < 2


@pytest.mark.parametrize(
    "name, written",
    [
        ("t.jsonl", str.encode),
        ("t.jsonl", lambda text: text.encode("utf-16")),
        ("t.csv", str.encode),
        ("t.jsonl.gz", lambda text: gzip.compress(text.encode())),
    ],
)
def test_a_line_without_end_takes_no_more_memory_than_it_may(tmp_path, monkeypatch, name, written):
    monkeypatch.setattr(limits, "LINE", 1000)
    (tmp_path / name).write_bytes(written('{"text": "short"}\n{"text": "' + "x" * 100_000))
    with pytest.raises(ValueError, match=f"{name}: a line of more than 1,000 bytes, which begins with "):
        rows(tmp_path / name)


@pytest.mark.parametrize(
    "name, head, encoding",
    [("t.jsonl", "", "utf-8"), ("t.jsonl", "", "utf-16"), ("t.jsonl.gz", "", "utf-8"), ("t.csv", "text,n\n", "utf-8")],
)
def test_a_long_line_costs_its_row_alone(tmp_path, monkeypatch, name, head, encoding):
    monkeypatch.setattr(limits, "LINE", 1000)
    texts = ["short", "x" * 5000, "y" * 1001, "last"]
    written = [f"{text},1" if head else json.dumps({"text": text}) for text in texts]
    data = (head + "".join(f"{line}\n" for line in written)).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    result = rows(tmp_path / name)
    assert [row["text"] for row in result[::3]] == ["short", "last"] and len(result) == 4
    assert all("a line of more than 1,000 bytes, which begins with" in str(row) for row in result[1:3])
    monkeypatch.setattr(limits, "SKIPPED", 3000)
    with pytest.raises(ValueError, match=f"{name}: a line of more than 1,000 bytes"):
        rows(tmp_path / name)


def test_a_long_line_in_an_open_cell_costs_its_row_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LINE", 1000)
    (tmp_path / "t.csv").write_text(f'image,text\na.jpg,"one\n{"x" * 5000}\nb.jpg,two\n')
    first, long, second = rows(tmp_path / "t.csv")
    assert first == {"image": "a.jpg", "text": '"one'} and second == {"image": "b.jpg", "text": "two"}
    assert "a line of more than 1,000 bytes" in str(long)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.jsonl.gz", "t.json"])
@pytest.mark.parametrize("limit, blank", [("BLANK_LINES", 101), ("BLANK", 10_001)])
def test_blank_lines_without_end_are_not_passed_over(tmp_path, monkeypatch, name, limit, blank):
    monkeypatch.setattr(text_tables, "WINDOW", 64)
    row = "a.jpg,b\n" if name == "t.csv" else '{"image": "a.jpg", "text": "b"}\n'
    start = {"t.csv": "image,text\n", "t.json": "["}.get(name, "") + row
    empty = "\n" * blank if limit == "BLANK_LINES" else ("," if name == "t.csv" else " ") * blank + "\n"
    text = start + (",," if name == "t.json" else "") + empty + row + "]" * (name == "t.json")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert len(rows(tmp_path / name)) == 2
    if (limit, name) == ("BLANK_LINES", "t.json"):  # whose lines have no meaning
        return
    monkeypatch.setattr(limits, limit, blank // 2)
    with pytest.raises(ValueError, match=f"{name}: more than .* between two rows are blank"):
        rows(tmp_path / name)


# ---- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_list_of_another_encoding_says_so(tmp_path, encoding):
    (tmp_path / "t.json").write_bytes('[{"text": "a"}]'.encode(encoding))
    with pytest.raises(ValueError, match=f"t.json: is {encoding.upper()}; save it as UTF-8"):
        read_samples(str(tmp_path / "t.json"))


@pytest.mark.parametrize("start, end", [("", "\n"), ("\ufeff", "\r\n\r\n")])
def test_a_json_file_may_have_a_row_on_each_line(tmp_path, start, end):
    lines = [json.dumps({"text": "a" * 5000}), "{broken", json.dumps({"text": "b"})]
    (tmp_path / "t.json").write_text(start + end.join(lines), encoding="utf-8", newline="")
    first, broken, last = read_records(str(tmp_path / "t.json"))
    assert (first.captions, last.captions) == (("a" * 5000,), ("b",)) and "not a line of JSON" in broken.error
    (tmp_path / "t.json").write_text(json.dumps({"a.jpg": "a cat", "b.jpg": "a dog"}))
    with pytest.raises(ValueError, match="t.json: is no list of rows, and lists no shards"):
        read_samples(str(tmp_path / "t.json"))


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_a_window_at_a_time(tmp_path, monkeypatch, name, indent):
    monkeypatch.setattr(text_tables, "WINDOW", 64)
    monkeypatch.setattr("imagetext.readers.table_pieces.ROWS_PER_SHARD", 4)
    values = [
        {"id": number, "text": f'猫 \u2028 ] }} , \\" {number} {"x" * (7 * number)}', "list": [[1], {}]}
        for number in range(21)
    ]
    (tmp_path / name).write_text(json.dumps(values, ensure_ascii=False, indent=indent))
    assert rows(tmp_path / name) == values
    assert [len(piece) for piece in split_rows(str(tmp_path / name))] == [4, 4, 4, 4, 4, 1]


def test_objects_printed_over_several_lines(tmp_path):
    values = [{"id": number, "text": "a"} for number in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(value, indent=2) for value in values))
    assert rows(tmp_path / "t.jsonl") == values


@pytest.mark.parametrize(
    "lines, expected",
    [
        (
            ['[{"n": 0}, {"n": 1}]', '[{"n": 2}]', "[]", '[{"n": 3}, [4], 5]'],
            [0, 1, 2, 3, "list", "int"],
        ),  # an array on each line
        (['[{"n": 0}]', '{"n": 1}', "]"], [0, 1]),
    ],
)
def test_rows_behind_the_end_of_an_array_are_rows(tmp_path, monkeypatch, lines, expected):
    # each can also be read from its own offset
    monkeypatch.setattr("imagetext.readers.table_pieces.ROWS_PER_SHARD", 1)
    for name in ("t.json", "t.jsonl"):
        (tmp_path / name).write_text("\n".join(lines))
        assert [row["n"] if isinstance(row, dict) else row.split()[-1] for row in rows(tmp_path / name)] == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ('[\n{"text": "a"},\n' + "9" * 5000 + "]", "line 3: Exceeds the limit"),
        ('[{"text": "a"}]\n garbage', "line 2: not JSON"),
        ('[{"text": "a"}]\n[{"text": "b"}', "is cut"),
        ('[\n{"text": "a"},\n{"text": b}\n]', "line 3: not JSON"),
        ('[\n{"text": "a"},\n', "is cut"),
        ('[\n{"text": "a"},\n{"te', "line 3: not JSON"),
    ],
)
def test_a_broken_array_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=f"t.json: {message}"):
        read_samples(str(tmp_path / "t.json"))


def test_an_element_without_end_takes_no_more_memory_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "WINDOW", 64)
    monkeypatch.setattr(limits, "LINE", 1000)
    (tmp_path / "t.json").write_text('[{"text": "' + "x" * 100_000)
    with pytest.raises(ValueError, match="t.json: line 1: not JSON: .*; or it has more than the 1,000 bytes that are"):
        split_rows(str(tmp_path / "t.json"))
