import re

from hypothesis import example, given
from hypothesis import strategies as st

from imagetext.keys import SeenKeys, decode_key, encode_key, shortened

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(KEYS)
@example("a.b/c d%41~é/")
@example("/etc/../x")
def test_a_key_comes_back_from_its_name_in_a_tar(key):
    name = encode_key(key)
    assert re.fullmatch(r"[A-Za-z0-9_/%-]+", name) and not name.startswith("/") and not name.endswith("/")
    assert decode_key(name) == key


def test_encoding_to_the_letter():
    assert encode_key("cats/Cat_01-b") == "cats/Cat_01-b"
    assert encode_key("a.b c~2é") == "a%2Eb%20c%7E2%C3%A9"


def test_names_that_were_never_encoded_stay():
    for name in ("50%", "50%off", "a%2eb", "x y%20"):
        assert decode_key(name) == name


def test_a_key_seen_twice_says_so(caplog):
    keys = SeenKeys("00000.tar")
    assert [keys.unique(key) for key in ("a", "b", "a", "a", "a~2")] == ["a", "b", "a~2", "a~3", "a~2~2"]
    assert [record.args for record in caplog.records] == [
        ("00000.tar", "a", "a~2"),
        ("00000.tar", "a", "a~3"),
        ("00000.tar", "a~2", "a~2~2"),
    ]


def test_a_key_that_is_too_long_for_a_tar_keeps_its_beginning_and_a_hash(caplog):
    keys = SeenKeys("x.csv")
    long, longer = "é" * 166 + "abcd", "é" * 166 + "abcde"  # 1,000 and 1,001 characters in a tar
    assert keys.unique(long) == long and not caplog.messages
    short = keys.unique(longer)
    assert short == shortened(longer) and short.startswith("é" * 64 + "~") and len(short) == 97
    assert caplog.messages == [f"x.csv: a key of 171 characters is too long and becomes {short!r}"]
    assert keys.unique(longer + "f") not in (short, long)
    assert keys.unique(longer) == short + "~2"
