"""`capsmith generate`: whole runs with a captioner that has no model."""

import gc
import hashlib
import io
import json
import os
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from captioners.base import Caption, Captioned, Request
from generate.captions.load import fitting_batch_size, load_columns
from generate.captions.preview import count_pictures
from generate.captions.run import run
from generate.runs.manifest import CARD, RUN
from generate.runs.protocol import Pace
from generate.sets.join import JoinConfig
from generate.sets.join import run as join
from imagetext.shards import read_marker
from imagetext.sources import read_records, read_samples

BROKEN = b"this is text"


def npz(*names: str) -> bytes:
    archive = io.BytesIO()
    np.savez(archive, **{name: np.zeros((2, 3), np.float16) for name in names})
    return archive.getvalue()


def records(folder, suffix="tar"):
    return list(read_records(str(folder / f"*.{suffix}")))


def test_a_run_looks_for_garbage_among_its_own_objects_alone(captioner, make_tar, pictures, configure, monkeypatch):
    make_tar("00000", pictures(1))
    kept, caption = [], captioner.caption
    monkeypatch.setattr(
        captioner, "caption", lambda *args, **options: kept.append(gc.get_freeze_count()) or caption(*args, **options)
    )
    assert run(configure()) == 0
    assert kept[0] > 1000 and gc.get_freeze_count() == 0


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, suffix", [("webdataset", "tar"), ("jsonl", "jsonl"), ("parquet", "parquet")])
def test_rows_in_are_rows_out_in_order_with_failures_last(
    captioner, make_tar, pictures, configure, tmp_path, format, suffix
):
    make_tar("00000", [*pictures(3), BROKEN, *pictures(2, 3)])
    make_tar("00001", [b"", None, *pictures(1, 5)])
    assert run(configure(format=format, max_error_rate=0.5)) == 0
    written = records(tmp_path / "out", suffix)
    assert [record.key for record in written] == [
        "00000_000",
        "00000_001",
        "00000_002",
        "00000_004",
        "00000_005",
        "00000_003",
        "00001_002",
        "00001_000",
        "00001_001",
    ]
    for record in written:
        if record.key in ("00000_003", "00001_000", "00001_001"):
            assert record.error and not record.syn_text
        else:
            assert record.error == "" and len(record.syn_text["syn_text_fake"]) == 5
            assert record.captions == (f"original {int(record.key[-3:])}",)
            assert record.scores["syn_text_fake"]["logprob"] == [0, -0.3333, -0.6667, -1.0, -1.3333]
            assert record.scores["syn_text_fake"]["truncated"] == [False, True, False, False, False]
    assert "not a picture" in written[5].error and "empty" in written[7].error and "missing" in written[8].error


def test_the_captions_are_the_captioners_own_for_each_picture(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", [*pictures(3), BROKEN, *pictures(2, 3)])
    run(configure(seed=3, num_captions=2))
    for record in records(tmp_path / "out")[:5]:
        pixels = captioner.preprocess(Image.open(io.BytesIO(record.image)).convert("RGB"))
        [expected] = captioner.caption([Request(record.key, pixels)], configure(seed=3, num_captions=2).sampling)
        assert record.syn_text["syn_text_fake"] == tuple(caption.text for caption in expected.captions)


def test_batches_are_of_the_batch_size_and_do_not_cross_shards(captioner, make_tar, pictures, configure):
    make_tar("00000", pictures(5))
    make_tar("00001", pictures(3))
    run(configure(batch_size=2))
    assert captioner.batches == [2, 2, 1, 2, 1]


def test_the_bytes_depend_on_neither_workers_nor_other_shards(
    captioner, make_tar, pictures, configure, tmp_path, files
):
    make_tar("00000", pictures(5))
    make_tar("00001", [*pictures(3), BROKEN])
    run(configure(num_workers=1))
    run(configure(num_workers=4, output=tmp_path / "four"))
    alone = tmp_path / "in" / "00001.tar"
    run(configure(input=[str(alone)], output=tmp_path / "alone"))
    assert files(tmp_path / "out") == files(tmp_path / "four")
    assert {
        name: data for name, data in files(tmp_path / "alone").items() if name not in (CARD, RUN)
    }.items() <= files(tmp_path / "out").items()


def test_column_prefix_and_text_from_synthetic(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(1))
    run(configure(column="syn_text_other", prefix="a ", text_from_synthetic=True))
    with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
        text = archive.extractfile("00000_000.txt").read().decode()
        syn = json.loads(archive.extractfile("00000_000.syn.json").read())
    assert list(syn) == ["syn_text_other"] and syn["syn_text_other"][0] == text and text.startswith("a picture")


def test_members_and_an_earlier_column_are_carried(captioner, make_tar, pictures, configure, tmp_path):
    make_tar(
        "00000", pictures(2), npz=npz("image_emb"), paug__json=b"{}", syn__json=b'{"syn_text_first": ["one", "two"]}'
    )
    assert run(configure()) == 0
    for record in records(tmp_path / "out"):
        assert record.members == {"npz": npz("image_emb"), "paug.json": b"{}"}
        assert record.syn_text["syn_text_first"] == ("one", "two") and len(record.syn_text["syn_text_fake"]) == 5


def test_a_picture_with_only_empty_captions_is_a_row_with_the_reason(
    captioner, make_tar, pictures, configure, tmp_path
):
    make_tar("00000", pictures(4))
    original_caption = captioner.caption

    def caption(requests, sampling, **options):
        for captioned in original_caption(requests, sampling):
            yield (
                Captioned(captioned.key, (Caption(" ", 0.0, False),) * 5)
                if captioned.key == "00000_001"
                else captioned
            )

    captioner.caption = caption
    assert run(configure(max_error_rate=0.3)) == 0
    last = records(tmp_path / "out")[-1]
    assert last.key == "00000_001" and last.error == "syn_text_fake: no caption passed: " + "; ".join(["empty ''"] * 5)


# --- exit codes and errors -------------------------------------------------------------------------------------------


def test_rows_that_came_as_failures_do_not_count(captioner, make_tar, pictures, configure, tmp_path, capsys):
    """This holds in every format; a picture that cannot be read now does count."""
    make_tar("00000", [*pictures(3), b"no picture", None])
    for format in ("webdataset", "jsonl", "parquet"):
        assert run(configure(format=format, output=tmp_path / format)) == 3
        reason = "each of their records says why in `error`, the first one: not a picture"
        assert reason in " ".join(capsys.readouterr().out.split())
        again = configure(
            input=[str(tmp_path / format)], column="syn_text_y", max_error_rate=0, output=tmp_path / f"{format}2"
        )
        assert run(again) == 0
        printed = capsys.readouterr().out
        assert (
            "of 5 pictures, 2 without (40.0%)" in printed
            and printed.count("2 rows of the input had failed before") == 1
        )
    make_tar("00001", [*pictures(3), None])
    assert (
        run(
            configure(
                input=[str(tmp_path / "webdataset"), str(tmp_path / "in" / "00001.tar")],
                column="syn_text_y",
                max_error_rate=0.1,
                output=tmp_path / "more",
            )
        )
        == 3
    )
    assert "14.3% of the pictures failed" in capsys.readouterr().out


@pytest.mark.parametrize("limit, code", [(0.25, 0), (0.24, 3), (0.0, 3), (1.0, 0)])
def test_exit_code_3_above_the_error_rate(captioner, make_tar, pictures, configure, limit, code):
    make_tar("00000", [*pictures(3), BROKEN])
    assert run(configure(max_error_rate=limit)) == code
    assert run(configure(max_error_rate=limit)) == code  # also when there is nothing left to do


def test_a_shard_that_fails_is_exit_code_1_and_is_tried_again(
    captioner, make_tar, pictures, configure, tmp_path, files, caplog
):
    for name in ("00000", "00001", "00002"):
        path = make_tar(name, pictures(3))
    content = open(path, "rb").read()
    with open(path, "r+b") as file:
        file.truncate(len(content) // 2 + 1)  # not between two files, as in a tar that was not closed
    stat = os.stat(path)
    assert run(configure()) == 1
    assert "00002.tar" in caplog.text
    assert sorted(files(tmp_path / "out")) == ["00000.done.json", "00000.tar", "00001.done.json", "00001.tar", RUN]
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(configure()) == 0
    run(configure(output=tmp_path / "undisturbed"))
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_a_model_that_raises_fails_the_shard_and_not_its_pictures(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(3))

    def caption(requests, sampling, **options):
        yield next(iter(requests)) and 1 / 0

    captioner.caption = caption
    assert run(configure()) == 1
    assert not (tmp_path / "out" / "00000.tar").exists()


def test_the_batch_fits_into_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr("generate.captions.load.free_memory", lambda: 10_000)
    assert [fitting_batch_size(size, "cpu") for size in (100, 400, 2500, 6000)] == [32, 12, 2, 1]
    assert [fitting_batch_size(size, "cpu", small=True) for size in (10, 100, 6000)] == [64, 50, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [fitting_batch_size(size, "cpu") for size in (10, 100)] == [32, 12]
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (4_000_000, 9_000_000))
    assert [fitting_batch_size(size, "cuda:0") for size in (100, 10_000)] == [256, 200]


@pytest.mark.parametrize("parameters, size", [(49_999_999, 64), (50_000_000, 32), (None, 32)])
def test_of_a_small_model_more_pictures_are_in_flight(captioner, configure, monkeypatch, parameters, size):
    if parameters:
        captioner.model = torch.nn.ParameterList([torch.empty(parameters, device="meta")])
    (column,) = load_columns(configure(batch_size=None), [], "cpu")
    assert column.batch_size == size
    earlier = [{"batch_size": 16, "dtype": "fp32"}]
    assert load_columns(configure(batch_size=None), earlier, "cpu")[0].batch_size == 16


def test_out_of_memory_a_shard_is_begun_anew_with_half_the_batch(
    captioner, make_tar, pictures, configure, tmp_path, files
):
    """Memory runs out with more than two pictures in flight, after the first captions, in the second shard only."""
    for name in ("00000", "00001", "00002"):
        make_tar(name, pictures(9))
    original_caption, tried = captioner.caption, []

    def caption(requests, sampling, **options):
        captions = original_caption(requests, sampling, **options)
        first = next(captions)
        if first.key.startswith("00001"):
            tried.append(options["batch_size"])
        yield first
        if first.key.startswith("00001") and options["batch_size"] > 2:
            raise torch.OutOfMemoryError("injected")
        yield from captions

    captioner.caption = caption
    assert run(configure(batch_size=8)) == 0
    assert tried == [8, 4, 2] and captioner.batch_size == 2  # the captioner's own batch size stays as it is
    markers = [json.loads((tmp_path / "out" / f"0000{number}.done.json").read_text()) for number in range(3)]
    assert [marker.get("batch_sizes") for marker in markers] == [None, [2], None]
    assert (
        json.loads((tmp_path / "out" / RUN).read_text())["fingerprint"]["columns"]["syn_text_fake"]["batch_size"] == 8
    )
    captioner.caption = original_caption
    run(configure(batch_size=8, output=tmp_path / "undisturbed"))
    tars = [
        {name: data for name, data in files(tmp_path / folder).items() if name.endswith(".tar")}
        for folder in ("out", "undisturbed")
    ]
    assert tars[0] == tars[1]


def test_out_of_memory_with_one_picture_in_flight_fails_the_shard(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(2))

    def caption(requests, sampling, **options):
        raise torch.OutOfMemoryError("injected")
        yield

    captioner.caption = caption
    assert run(configure()) == 1
    assert not (tmp_path / "out" / "00000.done.json").exists()


def test_similarity_is_recorded_where_asked_for(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(1))
    assert run(configure(similarity=True, num_captions=2)) == 0
    [record] = records(tmp_path / "out")
    assert record.scores["syn_text_fake"]["similarity"] == [0, 0.1429]


def test_the_pace_is_told(captioner, make_tar, pictures, configure, capsys):
    make_tar("00000", pictures(3))
    run(configure())
    assert re.search(
        r"[\d.]+ pictures/s, [\d.]+ captions/s, the model waited \d+% of the time; 0 failed", capsys.readouterr().out
    )


def test_the_pace_of_a_command_without_a_model_tells_no_waiting():
    """`select` and `reinforce` said that the model waited 0 % of the time."""
    pace = Pace()
    pace.count(failed=False)
    assert re.fullmatch(r"[\d.]+ pictures/s; 0 failed", str(pace))


def test_a_column_that_is_there_already_is_an_error(captioner, make_tar, pictures, configure):
    make_tar("00000", pictures(2), syn__json=b'{"syn_text_fake": ["one"]}')
    with pytest.raises(ValueError, match="has the column syn_text_fake already"):
        run(configure())
    assert run(configure(column="syn_text_other")) == 0


def test_a_column_that_is_there_is_replaced_where_asked_for(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(2), syn__json=b'{"syn_text_fake": ["one"], "syn_text_first": ["two"]}')
    assert run(configure(replace_columns=True)) == 0
    for record in records(tmp_path / "out"):
        assert len(record.syn_text["syn_text_fake"]) == 5 and record.syn_text["syn_text_first"] == ("two",)


def test_text_embeddings_of_other_captions_are_an_error_unless_they_may_go(
    captioner, make_tar, pictures, configure, tmp_path
):
    make_tar("00000", pictures(2), npz=npz("image_emb", "text_emb"))
    with pytest.raises(ValueError, match="00000_000: has text embeddings .npz: text_emb."):
        run(configure())
    assert run(configure(drop_text_embeddings=True)) == 0
    assert all(
        np.load(io.BytesIO(record.members["npz"])).files == ["image_emb"] for record in records(tmp_path / "out")
    )
    assert run(configure(captions_only=True, output=tmp_path / "apart")) == 0


def test_a_record_of_a_reinforced_set_without_its_picture_says_so(captioner, make_tar, configure, tmp_path, capsys):
    """And not that its text embeddings, which the new captions would not have, are in the way."""
    make_tar("00000", [None], npz=npz("image_emb", "text_emb"), syn__json=b'{"syn_text_x": ["a dog"]}')
    assert run(configure()) == 3
    assert "100.0% of the pictures failed" in (printed := capsys.readouterr().out)
    assert "the first one: missing picture" in printed


def test_a_run_whose_instruction_fits_no_record_does_not_end_well(make_tar, pictures, configure, tmp_path, capsys):
    """Its records are sound, because they have captions of an earlier run."""
    make_tar("00000", pictures(2), txt=b"", syn__json=b'{"syn_text_x": ["a red dog"]}')
    assert run(configure(model="rules:negatives", on_degenerate="drop")) == 3
    assert "none of 2 records has got a text in neg_text_rules" in capsys.readouterr().out
    instruction = {"instruction": "{{ syn_text_x }}", "output": tmp_path / "made"}
    assert run(configure(model="rules:negatives", on_degenerate="drop", **instruction)) == 0


@pytest.mark.parametrize("format, suffix", [("webdataset", "tar"), ("jsonl", "jsonl"), ("parquet", "parquet")])
def test_captions_only_are_joined_with_their_pictures_later(
    captioner, make_tar, pictures, configure, tmp_path, capsys, format, suffix
):
    """The result is as if they had been written together, except for embeddings and the position of the scores."""
    for name in ("00000", "00001"):
        make_tar(name, [*pictures(3, 3 * int(name)), BROKEN], npz=npz("image_emb"))
    assert run(configure(captions_only=True, format=format, max_error_rate=1, output=tmp_path / "apart")) == 0
    assert all(record.image is None and not record.members for record in records(tmp_path / "apart", suffix))
    assert run(configure(max_error_rate=1)) == 0
    for on in ("uid", "sha256"):
        options = {
            "input": [str(tmp_path / "in" / "*.tar")],
            "captions": [str(tmp_path / "apart")],
            "on": on,
            "output": tmp_path / on,
        }
        assert join(JoinConfig(**options)) == 0
        joined = {record.key: record for record in records(tmp_path / on)}
        for record in records(tmp_path / "out"):
            assert joined[record.key].syn_text == record.syn_text and bool(joined[record.key].error) == bool(
                record.error
            )
            assert joined[record.key].image == record.image
            assert joined[record.key].members == record.members
        assert len(joined) == 8
    assert (
        "uid: 6 pictures with captions joined on uid, 2 without any to join, 0 with several that differ"
        in capsys.readouterr().out
    )


def test_join_draws_texts_and_says_where_nothing_matched(captioner, make_tar, pictures, configure, tmp_path, capsys):
    make_tar("00000", pictures(4))
    assert run(configure(captions_only=True, num_captions=1, output=tmp_path / "apart")) == 0
    inputs = {"input": [str(tmp_path / "in" / "*.tar")], "captions": [str(tmp_path / "apart")]}
    assert join(JoinConfig(**inputs, output=tmp_path / "joined", text_from="syn_text_fake:1")) == 0
    with tarfile.open(tmp_path / "joined" / "00000.tar") as archive:
        texts = [archive.extractfile(name).read().decode() for name in archive.getnames() if name.endswith(".txt")]
    assert texts == [record.syn_text["syn_text_fake"][0] for record in records(tmp_path / "joined")]
    make_tar("00000", pictures(4, 50))
    assert join(JoinConfig(**inputs, output=tmp_path / "other", on="sha256")) == 1
    hashes = [sorted(hashlib.sha256(image).hexdigest() for image in pictures(4, first)) for first in (0, 50)]
    keys = re.search(
        "Nothing was joined: a picture has '(.*)' and captions have '(.*)'. Use --on", capsys.readouterr().out
    )
    assert keys[1] in hashes[1] and keys[2] == hashes[0][0]
    (tmp_path / "texts.csv").write_text("name,syn_text_x\n000000000,a dog\n")
    assert join(JoinConfig(input=inputs["input"], captions=[str(tmp_path / "texts.csv")], output=tmp_path / "x")) == 1
    assert "; a table in --captions needs it in a column key, uid or id." in capsys.readouterr().out
    with pytest.raises(ValueError, match="--captions: required, unless"):
        join(JoinConfig(input=inputs["input"], output=tmp_path / "none"))
    with pytest.raises(ValueError, match="is not COLUMN:p"):
        JoinConfig(**inputs, output=tmp_path / "none", text_from="syn_text_fake")


@pytest.mark.parametrize("name", ["embedder", "Fake-1", "x_captions"])
def test_a_captioners_name_that_cannot_name_a_column_is_an_error(
    captioner, make_tar, pictures, configure, name, tmp_path
):
    make_tar("00000", pictures(1))
    captioner.name = name
    with pytest.raises(ValueError, match="syn_text_"):
        run(configure())
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_an_error(captioner, make_tar, pictures, configure):
    make_tar("00000", pictures(1))
    with pytest.raises(ValueError, match="device 'abacus'"):
        run(configure(device="abacus"))


def test_interrupting_leaves_no_half_shard(captioner, make_tar, pictures, configure, tmp_path, files):
    make_tar("00000", pictures(3))

    def caption(requests, sampling, **options):
        yield next(original_caption(requests, sampling))
        raise KeyboardInterrupt

    original_caption, captioner.caption = captioner.caption, caption
    with pytest.raises(KeyboardInterrupt):
        run(configure())
    assert list(files(tmp_path / "out")) == [RUN]


# --- several columns, a look ahead -----------------------------------------------------------------------------------


COLUMNS = [{"column": "syn_text_a"}, {"column": "syn_text_b", "seed": 7, "batch_size": 3}, {"model": "other"}]


def test_columns_of_one_model_share_its_captioner_and_the_least_of_their_batch_sizes(
    loaded, make_tar, pictures, configure, tmp_path
):
    make_tar("00000", [*pictures(4), BROKEN])
    assert run(configure(columns=COLUMNS, num_captions=2, max_error_rate=0.2)) == 0
    assert [(fake.name, fake.batch_size) for fake in loaded] == [("fake", 2), ("other", 2)]
    written = json.loads((tmp_path / "out" / RUN).read_text())["fingerprint"]["columns"]
    assert list(written) == ["syn_text_a", "syn_text_b", "syn_text_other"]
    assert [column["captioner"] for column in written.values()] == ["fake", "fake", "other"]
    assert [column["batch_size"] for column in written.values()] == [2, 2, 2]
    found_records = records(tmp_path / "out")
    for record in found_records[:4]:
        assert (
            list(record.syn_text) == list(written) and record.syn_text["syn_text_a"] != record.syn_text["syn_text_b"]
        )
    assert found_records[4].error and json.loads((tmp_path / "out" / "00000.done.json").read_text())[
        "captions"
    ] == dict.fromkeys(written, 8)


def test_each_column_is_what_a_run_of_its_own_gives(loaded, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(4))
    run(configure(columns=COLUMNS))
    run(configure(column="syn_text_b", seed=7, output=tmp_path / "alone"))
    both = zip(records(tmp_path / "out"), records(tmp_path / "alone"), strict=True)
    assert all(first.syn_text["syn_text_b"] == other.syn_text["syn_text_b"] for first, other in both)


def test_columns_draw_by_their_names_and_what_they_share_is_told(
    captioner, make_tar, pictures, configure, tmp_path, capsys
):
    for name in ("00000", "00001"):
        make_tar(name, pictures(2, int(name)))
    original_caption, columns = captioner.caption, []

    def caption(requests, sampling, *, column, **options):
        columns.append(column)
        for captioned in original_caption(requests, sampling, **options):  # the third caption differs in column b
            yield Captioned(
                captioned.key,
                tuple(
                    Caption(f"{original.text} {column if i == 2 else ''}", 0.0, False)
                    for i, original in enumerate(captioned.captions)
                ),
            )

    captioner.caption = caption
    assert run(configure(columns=COLUMNS[:1] + [{"column": "syn_text_b"}], num_captions=3)) == 0
    assert {*columns} == {"syn_text_a", "syn_text_b"}
    expected = "syn_text_b: 66.7% of a picture's captions in one are also in the other, letter for letter"
    assert expected in capsys.readouterr().out
    assert read_marker(tmp_path / "out", "00001")["overlap"] == [["syn_text_a", "syn_text_b", 4, 6]]


def test_two_columns_of_one_name_are_an_error(loaded, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(1))
    with pytest.raises(ValueError, match="syn_text_fake named twice"):
        run(configure(columns=[{}, {"seed": 1}]))
    assert not (tmp_path / "out").exists()


def test_captions_that_stand_for_many_pictures_are_told_of(captioner, make_tar, pictures, configure, capsys):
    make_tar("00000", pictures(5))
    make_tar("00001", pictures(5, 5))
    original_caption = captioner.caption

    def caption(requests, sampling, **options):
        for captioned in original_caption(requests, sampling, **options):
            common = [Caption("a photo of a dog", 0.0, False)] * (int(captioned.key[-1]) % 2)
            yield Captioned(captioned.key, (*common, *captioned.captions[len(common) :]))

    captioner.caption = caption
    run(configure(redraws=1))
    assert "syn_text_fake: at least 4 of 10 pictures (40.0%) have 'a photo of a dog'" in capsys.readouterr().out


def test_limit_captions_the_first_records_and_says_what_all_would_take(
    captioner, make_tar, pictures, configure, tmp_path, capsys
):
    for name in ("00000", "00001", "00002"):
        make_tar(name, [*pictures(3), BROKEN])
    assert run(configure(limit=6, max_error_rate=0.5)) == 0
    assert [record.key for record in records(tmp_path / "out")] == [
        "00000_000",
        "00000_001",
        "00000_002",
        "00000_003",
        "00001_000",
        "00001_001",
    ]
    printed = capsys.readouterr().out
    assert (
        "the whole input: about " in printed
        and "estimated by bytes; about" in printed
        and "estimated from 6 pictures" in printed
    )
    assert (tmp_path / "out" / "gallery.html").read_text().count("<article") == 6
    with pytest.raises(ValueError, match="limit: 6 there, None now"):
        run(configure(max_error_rate=0.5))


def test_the_length_of_an_input_is_known_or_estimated_from_its_bytes(make_tar, pictures):
    tars = read_samples([make_tar("00000", pictures(40, 3)), make_tar("00001", pictures(30))])
    count = count_pictures(tars)
    assert not count.exact and count.shards == 2 and 0.8 < count.pictures / 70 < 1.25
    assert str(count) == f"about {count.pictures} pictures in 2 shards, estimated by bytes"
    listed = [replace(tars[0], samples=[0] * 1500), replace(tars[1], samples=[0] * 12)]
    assert str(count_pictures(listed)) == "1,512 pictures in 2 shards"
    assert 52 * 0.8 < count_pictures([tars[0], listed[1]]).pictures < 52 * 1.25
    assert str(count_pictures([replace(tars[0], samples=iter(()))])) == "pictures of unknown number in 1 shard"


def test_classes_are_written_where_they_are_asked_for(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(2), cls=b"1")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    run(configure())
    assert all("label" not in record.meta for record in records(tmp_path / "out"))
    with pytest.raises(ValueError, match="label: None there, 'cls' now"):
        run(configure(label="cls"))
    named = {"label": "cls", "class_names": str(tmp_path / "names.txt")}
    assert (
        run(configure(output=tmp_path / "named", **named)) == run(configure(output=tmp_path / "named", **named)) == 0
    )
    assert [record.meta["label"] for record in records(tmp_path / "named")] == ["dog", "dog"]
    (tmp_path / "names.txt").write_text("Katze\nHund\n")
    with pytest.raises(ValueError, match="class_names_sha256"):
        run(configure(output=tmp_path / "named", **named))
    with pytest.raises(ValueError, match="--label folder: .* lies in no folder"):
        run(configure(output=tmp_path / "other", label="folder"))
    with pytest.raises(ValueError, match="--class-names: needs --label"):
        configure(class_names="imagenet")


def test_dry_run_writes_nothing_and_finds_mistakes(captioner, make_tar, pictures, configure, tmp_path, capsys, files):
    make_tar("00000", pictures(3))
    assert run(configure(dry_run=True)) == 0
    assert "1 of 1 shards to do; nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and captioner.batches == []
    run(configure())
    before = files(tmp_path / "out")
    assert run(configure(dry_run=True)) == run(configure(dry_run=True, overwrite=True, seed=1)) == 0
    assert files(tmp_path / "out") == before
    with pytest.raises(ValueError, match="top_p"):
        run(configure(dry_run=True, top_p=0.5))


def test_what_is_to_be_overwritten_stays_until_the_captioner_is_there(
    captioner, make_tar, pictures, configure, tmp_path, files, monkeypatch
):
    make_tar("00000", pictures(3))
    run(configure())
    before = files(tmp_path / "out")

    def no_captioner(*args, **options):
        raise ValueError("no such model")

    monkeypatch.setattr("generate.captions.load.load_captioner", no_captioner)
    with pytest.raises(ValueError, match="no such model"):
        run(configure(overwrite=True))
    assert files(tmp_path / "out") == before
