"""Caption sets in small, exact copies of the published files, and in the real files where they are available."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext.sources import read_samples


def samples(spec, images=None):
    return [sample for shard in read_samples(spec, images) for sample in shard]


def captions(spec, images=None):
    return {sample.key: list(sample.captions) for sample in samples(spec, images)}


# ---- COCO -----------------------------------------------------------------------------------------------------------


def test_coco_is_read(coco, images):
    folder = images(*(f"{number:012d}.jpg" for number in range(1, 8)))
    records = samples(f"coco:{coco}", folder)
    assert [sample.key for sample in records] == [str(number) for number in range(1, 9)]
    assert records[2].captions == tuple(f"picture 3 caption {which}" for which in range(5))
    assert records[2].image == (folder / "000000000003.jpg").read_bytes() and records[2].meta["license"].endswith(
        "by-nc-nd/2.0/"
    )
    assert [bool(sample.error) for sample in records] == [False] * 7 + [True]


def test_the_permissive_subset_of_coco_is_by_by_sa_and_by_nd(coco):
    assert list(captions(f"coco-permissive:{coco}")) == ["4", "5", "6"]


def test_karpathy_splits_are_read(tmp_path, images, write):
    path = write(
        tmp_path / "dataset_coco.json",
        {
            "dataset": "coco",
            "images": [
                {
                    "filepath": "val2014",
                    "sentids": [1, 2],
                    "filename": f"COCO_val2014_{number:012d}.jpg",
                    "imgid": number,
                    "split": split,
                    "sentences": [
                        {"tokens": ["a", "man"], "raw": f"A man. {which}", "imgid": number, "sentid": which}
                        for which in (1, 2)
                    ],
                    "cocoid": 100 + number,
                }
                for number, split in enumerate(("test", "restval", "val", "train"))
            ],
        },
    )
    folder = images(*(f"val2014/COCO_val2014_{number:012d}.jpg" for number in range(4)))
    assert captions(f"karpathy:{path}", folder) == {"101": ["A man. 1", "A man. 2"], "103": ["A man. 1", "A man. 2"]}
    assert list(captions(f"karpathy:{path}#test", folder)) == ["100"] and list(captions(f"karpathy:{path}#val")) == [
        "102"
    ]
    assert all(not sample.error for sample in samples(f"karpathy:{path}#train", folder))


# ---- dense and long -------------------------------------------------------------------------------------------------


def test_docci_is_train_unless_asked(docci, images):
    folder = images("train_00000.jpg", "train_00001.jpg")
    records = samples(f"docci:{docci}", folder)
    assert [sample.key for sample in records] == ["train_00000", "train_00001", "train_00002"]
    assert records[1].captions == ("A long description of train 1. It has two sentences.",)
    assert records[1].image is not None and "missing" in records[2].error
    assert list(captions(f"docci:{docci}#qual_dev")) == [f"qual_dev_{number:05d}" for number in range(3)]
    [shard] = read_samples(f"docci:{docci}")
    assert shard.name == "docci_descriptions-00000" and shard.stamp["size"] == os.path.getsize(docci)


@pytest.mark.parametrize("bounds", [[[0, 0], [9, 7]], {"topLeft": {"x": 0, "y": 0}, "bottomRight": {"x": 9, "y": 7}}])
def test_variants_of_dci_are_read(tmp_path, dci, images, bounds):
    folder = dci(bounds)
    images("sa_1.jpg", "sa_2.jpg")
    assert captions(f"dci-short:{folder}") == {"sa_1": ["A dog on grass."], "sa_2": ["A street."]}
    assert captions(f"dci-extended:{folder}") == {"sa_1": ["A dog on grass. It is sunny."], "sa_2": ["A street."]}
    assert captions(f"dci-complete:{folder}")["sa_1"] == [
        "A dog on grass. It is sunny. a brown dog. grass: green and short."
    ]
    assert all(not sample.error for sample in samples(f"dci-short:{folder}", tmp_path / "images"))


# fields that GBC's toolkit writes in another way than the published files
TOOLKIT = {
    "img_url": None,
    "img_path": "data/images/wiki/horses.jpg",
    "short_caption": "Two horses.",
    "img_size": [9, 7],
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("added, key", [({}, "b%20c"), (TOOLKIT, "horses")], ids=["published", "toolkit"])
def test_variants_of_gbc_are_read(tmp_path, write, gbc_graph, form, added, key):
    path = tmp_path / f"graphs.{form}"
    graph = gbc_graph | added
    if form == "jsonl":
        write(path, [graph])
    else:
        pq.write_table(pa.Table.from_pylist([graph]), path)
    assert captions(f"gbc-short:{path}") == {key: ["Two horses."]}
    assert captions(f"gbc-long:{path}") == {key: ["Two horses. In snow."]}
    assert captions(f"gbc-relation:{path}") == {key: ["Two horses.", "The horse walks in the snow."]}


@pytest.mark.parametrize("column", ["image_binary", "image", None])
def test_recap_coco_is_read(recap_coco, images, picture, column):
    folder = images("COCO_val2014_000000000042.jpg")
    [sample] = samples(f"recap-coco:{recap_coco(column)}", folder)
    assert sample.key == "42" and sample.captions == ("A brown dog lies on a red rug.",) and sample.image == picture(0)
    assert sample.meta["caption_coco"] == "A dog."


# ---- what is wrong --------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named_all_at_once(tmp_path, docci, coco):
    with pytest.raises(ValueError) as error:
        read_samples(
            [
                f"docci:{docci}#valid",
                f"coco:{coco}#train",
                "docci:nowhere.jsonlines",
                f"coco:{docci}",
                f"dci-short:{docci}",
            ]
        )
    for part in (
        "split 'valid' is none of train, test, qual_dev, qual_test",
        "split 'train' is none of this file",
        "no such file or folder: nowhere.jsonlines",
        f"coco:{docci}: not a file of this set",
        "folder of annotations",
    ):
        assert part in str(error.value)


def test_a_row_of_another_form_is_a_row_with_the_reason(tmp_path, write):
    good = {"example_id": "train_1", "split": "train", "image_file": "a.jpg", "description": "A dog."}
    path = write(
        tmp_path / "docci.jsonlines", [good, {"example_id": "train_2"}, [1], {**good, "example_id": "train_3"}]
    )
    records = samples(f"docci:{path}")
    assert [sample.key for sample in records] == ["train_1", "docci-000000001", "docci-000000002", "train_3"]
    assert "not a row of this set" in records[1].error and "JSON object" in records[2].error


def test_bad_rows_of_later_shards_have_keys_of_their_own(tmp_path, monkeypatch, write):
    monkeypatch.setattr("imagetext.readers.curated.ROWS_PER_SHARD", 2)
    for number in range(5):
        write(tmp_path / "annotations" / f"{number}.json", {"image": f"{number}.jpg"})
    shards = read_samples(f"dci-short:{tmp_path / 'annotations'}")
    records = [sample for shard in shards for sample in shard]
    assert len(shards) == 3 and [sample.key for sample in records] == [
        f"annotations-{number:09d}" for number in range(5)
    ]
    assert all("short_caption" in sample.error for sample in records)


def test_a_table_takes_its_pictures_from_another_folder(tmp_path, images, write):
    folder = images("a.jpg")
    path = write(tmp_path / "elsewhere" / "set.jsonl", [{"image": "a.jpg", "caption": "A dog."}])
    [sample] = samples(path, folder)
    assert sample.image == (folder / "a.jpg").read_bytes() and sample.captions == ("A dog.",)


# ---- real files -----------------------------------------------------------------------------------------------------


def test_real_gbc_graphs_of_both_formats(data):
    folder = data / "gbc_wiki"
    for kind, least in (("gbc-short", 1), ("gbc-long", 1), ("gbc-relation", 2)):
        lines = captions(f"{kind}:{folder}/gbc/wiki/wiki_gbc_graphs.jsonl", folder / "images" / "wiki")
        rows = captions(f"{kind}:{folder}/gbc/wiki/wiki_gbc_graphs.parquet", folder / "images" / "wiki")
        assert lines == rows and len(lines) == 19
        assert all(texts and all(texts) for texts in lines.values()) and max(map(len, lines.values())) >= least
    assert all(
        not sample.error
        for sample in samples(f"gbc-short:{folder}/gbc/wiki/wiki_gbc_graphs.jsonl", folder / "images" / "wiki")
    )


@pytest.mark.parametrize(
    "part, count, key",
    [("IIW-400", 400, "aar_test_04600"), ("DCI_Test", 112, "sa_1545038"), ("DOCCI_Test", 100, "test_00731")],
)
def test_real_image_in_words(data, part, count, key):
    records = captions(f"iiw:{data}/imageinwords/{part}/data.jsonl")
    assert len(records) == count and next(iter(records)) == key
    assert all(len(texts) == 1 and len(texts[0].split()) > 20 for texts in records.values())


# ---- sets of many hands ---------------------------------------------------------------------------------------------


def test_textcaps_is_read(tmp_path, images, write):
    texts = [f"A sign that says {number}." for number in range(5)]
    path = write(
        tmp_path / "TextCaps_0.1_train.json",
        {
            "dataset_name": "textcaps",
            "data": [
                {
                    "image_id": "0054c91397f2fe05",
                    "image_path": "train/0054c91397f2fe05.jpg",
                    "caption_id": number,
                    "caption_str": text,
                    "reference_strs": texts,
                }
                for number, text in enumerate(texts)
            ]
            + [{"image_id": "test", "image_path": "test/test.jpg"}],
        },
    )
    first, second = samples(f"textcaps:{path}", images("0054c91397f2fe05.jpg", "test.jpg"))
    assert first.key == "0054c91397f2fe05" and first.captions == tuple(texts) and not first.error
    assert second.captions == () and second.image is not None


def test_localized_narratives_are_read(tmp_path, images, write):
    rows = [
        {
            "dataset_id": set_,
            "image_id": picture,
            "annotator_id": who,
            "caption": f"In this picture {who}.",
            "traces": [],
        }
        for set_, picture, who in (
            ("mscoco_train2017", "137576", 1),
            ("mscoco_train2017", "137576", 2),
            ("open_images_train", "0000c", 3),
            ("mscoco_train2017", "137576", 4),
        )
    ]
    path = write(tmp_path / "narratives.jsonl", rows)
    records = samples(f"localized-narratives:{path}", images("000000137576.jpg", "0000c.jpg"))
    assert [(sample.key, len(sample.captions), sample.error) for sample in records] == [
        ("137576", 3, ""),
        ("0000c", 1, ""),
    ]


def test_flickr_token_files_are_read(tmp_path, images):
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text(
        "".join(f"{name}#{number}\tcaption {number} .\n" for name in ("a.jpg", "b.jpg.1") for number in range(5))
    )
    first, second = samples(f"flickr:{path}", images("a.jpg"))
    assert (
        first.key == "a" and first.captions == tuple(f"caption {number} ." for number in range(5)) and not first.error
    )
    assert second.key == "b.jpg" and "missing" in second.error
    path.write_text("a.jpg#0\tone\u2028line\n", encoding="utf-8")
    assert captions(f"flickr:{path}") == {"a": ["one\u2028line"]}
    path.write_text("image,caption\na.jpg,one\n")
    with pytest.raises(ValueError, match="line 1: .*; if this is a table with a header, give .*token.txt alone"):
        read_samples(f"flickr:{path}")
    path.write_text("a.jpg#0\tone\na.jpg 2\n")
    with pytest.raises(ValueError, match="line 2: expected NAME#NUMBER"):
        read_samples(f"flickr:{path}")


def test_redcaps_is_read(tmp_path, picture, write):
    row = {"image_id": "7qw8w8", "url": "https://i.redd.it/x.jpg", "raw_caption": "A barn [OC]", "caption": "a barn"}
    path = write(
        tmp_path / "abandoned_2017.json",
        {"info": {"version": "1.0"}, "annotations": [{**row, "subreddit": "abandoned", "score": 3}]},
    )
    (tmp_path / "images" / "abandoned").mkdir(parents=True)
    (tmp_path / "images" / "abandoned" / "7qw8w8.jpg").write_bytes(picture())
    (record,) = samples(f"redcaps:{path}", tmp_path / "images")
    assert (record.key, record.image, record.captions) == ("7qw8w8", picture(), ("a barn",))
    with pytest.raises(ValueError, match="did you mean redcaps:.*abandoned_2017.json"):
        read_samples(str(path))


def test_vizwiz_captions_of_a_form_are_left_out_and_counted(tmp_path, images, write, caplog):
    canned = "Quality issues are too severe to recognize visual content."
    path = write(
        tmp_path / "vizwiz.json",
        {
            "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)],
            "annotations": [
                {"image_id": 1, "caption": "A can."},
                {"image_id": 1, "caption": canned, "is_precanned": True},
                {"image_id": 2, "caption": canned},
            ],
        },
    )
    records = samples(f"coco:{path}", images("1.jpg", "2.jpg"))
    assert [sample.captions for sample in records] == [("A can.",), ()] and not any(sample.error for sample in records)
    assert "2 captions that only say that the picture is bad are left out" in caplog.text


def test_ids_of_coco_may_be_texts_or_numbers_and_a_bad_annotation_costs_only_itself(tmp_path, write, caplog):
    path = write(
        tmp_path / "coco.json",
        {
            "licenses": [{"id": 1, "name": "own", "url": None}],
            "images": [{"id": number, "file_name": f"{number}.jpg", "license": 1} for number in (1, 2)],
            "annotations": [
                {"image_id": "1", "caption": "A can."},
                {"image_id": 2, "caption": None},
                {"image_id": 3, "caption": "Of no picture."},
            ],
        },
    )
    assert captions(f"coco:{path}") == {"1": ["A can."], "2": []}
    assert "2 annotations without a text or a picture are left out" in caplog.text


def test_a_split_of_coco_without_annotations_has_pictures_without_captions(tmp_path, write):
    path = write(tmp_path / "nocaps_test_image_info.json", {"images": [{"id": 1, "file_name": "1.jpg"}]})
    assert captions(f"coco:{path}") == {"1": []}


def test_a_url_that_is_none_costs_its_own_row(tmp_path, images, write, gbc_graph):
    path = write(
        tmp_path / "graphs.jsonl", [{**gbc_graph, "img_url": url} for url in ("http://[x", "http://a.example/cat.jpg")]
    )
    bad, good = samples(f"gbc-short:{path}", images("cat.jpg"))
    assert bad.error == "http://[x: not a URL: Invalid IPv6 URL" and good.key == "cat" and not good.error


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_pictures_of_one_file_name_and_several_urls_are_not_mixed_up(tmp_path, images, write, gbc_graph, form):
    urls = [
        "http://a.example/x/image.jpg",
        "http://b.example/image.jpg",
        "http://a.example/cat.jpg",
        "http://a.example/cat.jpg",
    ]
    rows = [{**gbc_graph, "img_url": url} for url in urls]
    path = tmp_path / f"graphs.{form}"
    if form == "jsonl":
        write(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    records = samples(f"gbc-short:{path}", images("image.jpg", "cat.jpg"))
    assert [sample.key for sample in records[2:]] == ["cat", "cat~2"] and not any(
        sample.error for sample in records[2:]
    )
    assert all(
        "several rows have pictures of this file name" in sample.error and sample.image is None
        for sample in records[:2]
    )
