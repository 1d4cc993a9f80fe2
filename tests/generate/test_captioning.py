"""From samples to records: their order, reading ahead, which errors are raised and which become rows."""

import io
import multiprocessing
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

import generate.captions.stages
from captioners.base import Caption, Captioned, SamplingConfig
from generate.captions.gate import Gate
from generate.captions.settled_column import SettledColumn
from generate.captions.stages import caption_samples
from imagetext.readers.tars import TarRows
from imagetext.sample import Record
from imagetext.sets.room import ColumnClash

SAMPLING = SamplingConfig(num_captions=2)
KEEP = Gate(redraws=0, on_degenerate="keep")


def caption(samples, captioner, **options):
    return caption_samples(
        samples, [SettledColumn("syn_text_fake", captioner, SAMPLING, gate=KEEP, batch_size=2)], **options
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept_and_no_more_than_two_batches_are_read_ahead(captioner, pictures, workers):
    images = pictures(20)
    numbers_read, prepare = [], captioner.preprocess

    def preprocess(image):
        time.sleep(random.random() / 100)
        return prepare(image)

    captioner.preprocess = preprocess
    samples = (numbers_read.append(number) or Record(str(number), image) for number, image in enumerate(images))
    for count, record in enumerate(caption(samples, captioner, num_workers=workers)):
        assert record.key == str(count)
        # two pictures of a batch at a time, and two batches ahead, or three pictures for three workers
        assert len(numbers_read) <= count + 2 + (2 * 2 if workers < 3 else 2 * 3) + 1
    assert count == 19


def test_pictures_are_decoded_while_the_captioner_works(captioner, pictures):
    """The captions of the first batch wait for a picture of the second: for ever, if it were not read ahead."""
    third = multiprocessing.Event()
    prepare, original_caption, count = captioner.preprocess, captioner.caption, iter(range(100))

    def preprocess(image):
        if next(count) == 2:
            third.set()
        return prepare(image)

    def wait_and_caption(requests, sampling, **options):
        for captioned in original_caption(requests, sampling):
            assert third.wait(30)
            yield captioned

    captioner.preprocess, captioner.caption = preprocess, wait_and_caption
    samples = [Record(str(number), image) for number, image in enumerate(pictures(4))]
    assert [record.key for record in caption(samples, captioner, num_workers=1)] == ["0", "1", "2", "3"]


def test_workers_end_with_their_run_even_if_it_is_killed(pictures, tmp_path):
    """A run that is killed leaves no process behind."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys, time
import psutil
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(generate.__file__).parents[1])!r}]
from conftest import FakeCaptioner, jpeg
from captioners.base import SamplingConfig
from generate.captions.settled_column import SettledColumn
from generate.captions.stages import caption_samples
from generate.captions.gate import Gate
from imagetext.sample import Record
samples = [Record(str(i), jpeg(i)) for i in range(50)]
column = SettledColumn("syn_text_fake", FakeCaptioner(), gate=Gate(redraws=0))
for record in caption_samples(samples, [column], num_workers=2):
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(600)
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(
        psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE for worker in workers
    ):
        assert time.monotonic() < deadline, f"{workers} live on"
        time.sleep(0.1)


def test_a_sample_that_is_in_error_already_keeps_its_reason(captioner, pictures):
    [record] = caption([Record("a", pictures(1)[0], error="row 3: two pictures")], captioner)
    assert (record.error, record.syn_text) == ("row 3: two pictures", {})


def test_an_unreadable_syn_json_is_a_row_with_the_reason(captioner, pictures, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, data in (("a.jpg", pictures(1)[0]), ("a.syn.json", b"[1]")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    [record] = caption(TarRows(str(tmp_path / "0.tar")), captioner)
    assert "syn.json" in record.error


def test_earlier_scores_are_kept_beside_the_new_ones(captioner, pictures):
    earlier = {"syn_text_first": {"logprob": [-1.0]}}
    [record] = caption([Record("a", pictures(1)[0], scores=earlier, meta={"uid": "u"})], captioner)
    assert record.meta == {"uid": "u"} and record.scores == {
        **earlier,
        "syn_text_fake": {"logprob": [0, -0.3333], "truncated": [False, True], "flags": ["", "cut"]},
    }


def test_a_clash_of_columns_is_raised_and_so_is_what_the_source_raises(captioner, pictures):
    with pytest.raises(ColumnClash, match="a: has the column syn_text_fake already; --replace-columns"):
        list(caption([Record("a", pictures(1)[0], columns={"syn_text_fake": ()})], captioner))

    def samples():
        yield Record("a", pictures(1)[0])
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        list(caption(samples(), captioner))


def test_nothing_to_caption_is_no_batch(captioner):
    assert list(caption([], captioner)) == []
    assert list(caption([Record("a", None)], captioner))[0].error == "missing picture"
    assert captioner.batches == []


def test_batches_are_full_whatever_fails_between(captioner, pictures):
    images = [None, *pictures(3), None, None, None, *pictures(2, 3), None]
    samples = [Record(str(number), image) for number, image in enumerate(images)]
    assert [(record.key, bool(record.error)) for record in caption(samples, captioner)] == [
        (str(number), image is None) for number, image in enumerate(images)
    ]
    assert captioner.batches == [2, 2, 1]


@pytest.mark.parametrize(
    "come", [lambda results: results[::-1], lambda results: results[:-1], lambda results: results[1:]]
)
def test_captions_that_are_missing_or_out_of_order_are_an_error(captioner, pictures, come):
    original_caption = captioner.caption
    captioner.caption = lambda requests, sampling, **options: iter(come(list(original_caption(requests, sampling))))
    samples = [Record(str(number), image) for number, image in enumerate(pictures(3))]
    with pytest.raises(RuntimeError, match="captioner fake"):
        list(caption(samples, captioner))


# --- several columns, redraws ----------------------------------------------------------------------------------------


def drawing(texts):
    """Return a `caption` method whose draw i for a key is `texts[key][i]`, or else a good caption; and its calls."""
    calls = []

    def caption(requests, sampling, *, column="", first_index=0, similarity=False, batch_size=None):
        for key, *_ in requests:
            indices = range(first_index, first_index + sampling.num_captions)
            calls.append((key, *indices))
            yield Captioned(
                key,
                tuple(
                    Caption(texts.get(key, {}).get(i, f"picture {key} as drawn in {i} words"), -i, False)
                    for i in indices
                ),
            )

    return caption, calls


def test_a_failing_caption_is_drawn_anew_by_its_number_until_one_passes(captioner, pictures):
    """Redraw r of caption i is draw number num_captions * r + i; good captions and the order of pictures stay."""
    captioner.caption, calls = drawing({"b": {1: "of the", 3: "a 2 2 2 2", 4: "never looked at", 5: "a red dog runs"}})
    samples = [Record(key, image) for key, image in zip("abc", pictures(3))]
    column = SettledColumn("syn_text_fake", captioner, SAMPLING, gate=Gate(redraws=3))
    records = list(caption_samples(samples, [column]))
    assert calls == [("a", 0, 1), ("b", 0, 1), ("c", 0, 1), ("b", 2, 3), ("b", 4, 5)]
    assert [record.key for record in records] == ["a", "b", "c"]
    assert records[1].syn_text["syn_text_fake"] == ("picture b as drawn in 0 words", "a red dog runs")
    assert records[1].scores["syn_text_fake"]["logprob"] == [0, -5]


@pytest.mark.parametrize(
    "gate, expected, flags",
    [
        (Gate(redraws=1), ("picture a as drawn in 0 words",), [""]),
        (Gate(redraws=1, on_degenerate="keep"), ("picture a as drawn in 0 words", "of the"), ["", "short cut"]),
    ],
)
def test_a_caption_that_never_passes_is_dropped_or_kept_and_flagged(captioner, pictures, gate, expected, flags):
    captioner.caption, calls = drawing({"a": {1: "of the", 3: "and"}})
    [record] = caption_samples(
        [Record("a", pictures(1)[0])], [SettledColumn("syn_text_fake", captioner, SAMPLING, gate=gate)]
    )
    assert len(calls) == 2
    assert record.syn_text["syn_text_fake"] == expected
    assert record.scores["syn_text_fake"]["flags"] == flags


def test_a_picture_with_no_caption_left_is_a_failed_record_that_says_which_failed_and_why(captioner, pictures):
    captioner.caption, _ = drawing({"b": {i: "of the" for i in range(4)}})
    samples = [Record(key, image, meta={"uid": key}) for key, image in zip("abc", pictures(3))]
    records = list(
        caption_samples(samples, [SettledColumn("syn_text_fake", captioner, SAMPLING, gate=Gate(redraws=1))])
    )
    assert [bool(record.error) for record in records] == [False, True, False]
    assert records[1].error == "syn_text_fake: no caption passed: short cut 'of the'; short cut duplicate 'of the'"
    assert records[1].syn_text == {} and records[1].meta == {"uid": "b"}


def test_greedy_captions_are_not_drawn_anew(captioner, pictures):
    captioner.caption, calls = drawing({"a": {0: "of the"}})
    column = SettledColumn("syn_text_fake", captioner, SamplingConfig(strategy="greedy"), gate=Gate(redraws=5))
    [record] = caption_samples([Record("a", pictures(1)[0])], [column])
    assert record.error and len(calls) == 1


def test_redraws_wait_for_many_pictures_and_keep_batches_full(captioner, pictures, monkeypatch):
    """All twelve pictures have a failing caption. They are drawn by twos, and redrawn, in fives, by twos, too."""
    monkeypatch.setattr("generate.captions.stages.REDRAWN_AT_ONCE", 5)
    images = pictures(12)
    samples = [Record(str(number), image) for number, image in enumerate(images)]
    [*records] = caption_samples(
        samples, [SettledColumn("syn_text_fake", captioner, SAMPLING, gate=Gate(redraws=1), batch_size=2)]
    )
    assert [record.key for record in records] == [str(number) for number in range(12)]
    assert sorted(captioner.batches) == [1, 1] + [2] * (6 + 5)


def test_several_columns_decode_a_picture_once_and_prepare_it_once_for_each_captioner(
    captioner, make_captioner, pictures, monkeypatch
):
    decoded, prepared = [], []
    original_decode, prepare = generate.captions.stages.decode_image, captioner.preprocess
    monkeypatch.setattr(
        generate.captions.stages, "decode_image", lambda data: decoded.append(data) or original_decode(data)
    )
    captioner.preprocess = lambda image: prepared.append("first") or prepare(image)
    other = make_captioner("other")
    other.preprocess = lambda image: prepared.append("other") or prepare(image)
    columns = [
        SettledColumn("syn_text_a", captioner, SAMPLING, gate=KEEP),
        SettledColumn("syn_text_b", captioner, SAMPLING.model_copy(update={"seed": 7}), gate=KEEP),
        SettledColumn("syn_text_c", other, SAMPLING, gate=KEEP),
    ]
    samples = [Record(str(number), image) for number, image in enumerate([*pictures(3), b"no picture"])]
    records = list(caption_samples(samples, columns))
    assert len(decoded) == 4 and prepared == ["first", "other"] * 3
    for column in columns:  # as if each column were alone
        alone = list(caption_samples(samples, [column]))
        assert [record.syn_text[column.name] for record in records[:3]] == [
            record.syn_text[column.name] for record in alone[:3]
        ]
    assert records[0].syn_text["syn_text_a"] != records[0].syn_text["syn_text_b"] and records[3].error
    assert list(records[0].scores) == ["syn_text_a", "syn_text_b", "syn_text_c"]


def test_a_column_with_no_caption_left_is_absent_where_another_has_some(captioner, make_captioner, pictures):
    other = make_captioner("other")
    captioner.caption, _ = drawing({"a": {0: "of", 1: "the"}})
    columns = [
        SettledColumn("syn_text_a", captioner, SAMPLING, gate=Gate(redraws=0)),
        SettledColumn("syn_text_b", other, SAMPLING, gate=KEEP),
    ]
    [record] = caption_samples([Record("a", pictures(1)[0])], columns)
    assert list(record.syn_text) == ["syn_text_b"] and record.error == ""


def test_first_sentences_are_kept_where_asked_for(captioner, pictures):
    captioner.caption, _ = drawing({"a": {0: "The arch of St. Louis. It is old.", 1: "A red dog. It runs."}})
    column = SettledColumn("syn_text_fake", captioner, SAMPLING, gate=Gate(sentences="first"))
    [record] = caption_samples([Record("a", pictures(1)[0])], [column])
    assert record.syn_text["syn_text_fake"] == ("The arch of St. Louis.", "A red dog.")
