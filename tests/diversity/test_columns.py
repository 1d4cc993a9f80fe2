import pytest

from diversity.columns import IMAGES_KEPT, read_columns
from imagetext.sample import Record, Sample


def record(key="k", captions=("a human caption",), image=None, error="", meta=None, **syn_text):
    return Record(Sample(key, image, tuple(captions), {}, meta or {}),
                  {f"syn_text_{name}": tuple(texts) for name, texts in syn_text.items()}, error)


def test_all_synthetic_columns_and_the_originals():
    found = read_columns([record("1", x=["a", "b"], y=["c"]), record("2", x=["d"], y=["e"])])
    assert found.names == ["syn_text_x", "syn_text_y"]
    assert found.references == "captions"
    assert [picture.captions["syn_text_x"] for picture in found.pictures] == [("a", "b"), ("d",)]
    assert found.pictures[0].references == ("a human caption",)


def test_named_columns_only():
    found = read_columns([record(x=["a"], y=["b"])], ["syn_text_y"])
    assert found.names == ["syn_text_y"]
    assert found.pictures[0].captions == {"syn_text_y": ("b",)}


def test_two_runs_on_the_same_pictures_are_joined_by_key():
    before = [record("1", before=["a"]), record("2", before=["b"])]
    after = [record("2", after=["c"]), record("1", captions=(), after=["d"])]
    found = read_columns([*before, *after])
    assert [(p.key, p.captions) for p in found.pictures] == [
        ("1", {"syn_text_before": ("a",), "syn_text_after": ("d",)}),
        ("2", {"syn_text_before": ("b",), "syn_text_after": ("c",)})]
    assert found.pictures[0].references == ("a human caption",)


def test_a_key_that_comes_again_with_the_same_column_is_another_picture():
    found = read_columns([record("1", x=["a"]), record("1", x=["b"]), record("1", y=["c"]), record("1", y=["d"])])
    assert [picture.captions for picture in found.pictures] == [
        {"syn_text_x": ("a",), "syn_text_y": ("c",)}, {"syn_text_x": ("b",), "syn_text_y": ("d",)}]


def test_no_caption_overwrites_another():
    found = read_columns([record("1", x=["a"]), record("1", x=["b"], y=["c"]), record("1", y=["d"])])
    assert [picture.captions for picture in found.pictures] == [
        {"syn_text_x": ("a",)}, {"syn_text_x": ("b",), "syn_text_y": ("c",)}, {"syn_text_y": ("d",)}]


def test_failed_records_are_counted():
    found = read_columns([record("1", x=["a"]), record("2", error="does not decode")])
    assert found.failed == 1


def test_other_columns_of_a_record_and_other_references():
    meta = {"alt_text": "IMG_1.jpg", "long_caption": ["a long text"], "width": 3}
    found = read_columns([record(x=["a"], meta=meta)], ["syn_text_x", "alt_text"], "long_caption")
    assert found.pictures[0].captions == {"syn_text_x": ("a",), "alt_text": ("IMG_1.jpg",)}
    assert found.pictures[0].references == ("a long text",)


def test_the_originals_as_a_column_are_no_references():
    assert read_columns([record(x=["a"])], ["captions"]).references is None


def test_no_originals_no_references():
    assert read_columns([record(captions=(), x=["a"])]).references is None


def test_marks_of_cut_captions_that_fit():
    scores = {"syn_text_x": {"truncated": [True, False]}, "syn_text_y": {"truncated": [True]}}
    found = read_columns([record(x=["a", "b"], y=["c", "d"], meta={"caption_scores": scores})])
    assert found.pictures[0].truncated == {"syn_text_x": (True, False)}


def test_missing_columns_are_named_all_at_once():
    with pytest.raises(ValueError, match="syn_text_a.*syn_text_b.*--references who.*the records have captions, syn_text_x"):
        read_columns([record(x=["a"])], ["syn_text_a", "syn_text_b"], "who")
    with pytest.raises(ValueError, match="no syn_text_.*--column; the records have captions"):
        read_columns([record()])
    with pytest.raises(ValueError, match="the records have no captions"):
        read_columns([])


def test_the_bytes_of_a_few_pictures_are_kept_whatever_their_order():
    records = [record(str(at), image=b"x", x=["a"]) for at in range(500)]
    kept = {picture.key for picture in read_columns(records).pictures if picture.image}
    assert IMAGES_KEPT <= len(kept) <= 2 * IMAGES_KEPT
    scene = read_columns([record(x=["a"], meta={"scene": {"background": "sand"}})]).pictures[0].scene
    assert scene == {"background": "sand"}
