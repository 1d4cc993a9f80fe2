"""A run resumes wherever it is killed, takes new shards, and refuses what would mix two runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import capsmith
import generate.captions.load
import generate.runs.manifest
from generate.captions.run import run
from generate.runs.in_place import read_pictures
from generate.runs.manifest import CARD, RUN, check_same, read_run, write_run
from imagetext.shards import ShardWriter, read_marker
from imagetext.sources import read_records

ROOT = Path(capsmith.__file__).parent
BROKEN = b"this is text"


def test_killed_at_any_step_and_resumed_the_output_is_that_of_an_undisturbed_run(make_tar, pictures, tmp_path):
    make_tar("00000", [*pictures(2), BROKEN])
    make_tar("00001", pictures(2, 3))
    suffixes = {"webdataset": "tar", "jsonl": "jsonl", "parquet": "parquet"}
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), "generate", str(tmp_path / "in" / "*.tar"), str(tmp_path), *suffixes],
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for format, (written, resumed) in results.items():
        assert {f"{name}.{end}" for name in ("00000", "00001") for end in (suffixes[format], "done.json")} <= set(
            written
        )
        # run.json; of each shard its records, its file, its marker; the card; JSONL has files of pictures, too
        assert len(resumed) >= 1 + (3 + 2) + (2 + 2) + 1 and all(resumed), format
    assert list(results) == list(suffixes)


def test_a_finished_shard_is_not_captioned_again(captioner, make_tar, pictures, configure):
    make_tar("00000", pictures(3))
    run(configure())
    captioner.batches.clear()
    assert run(configure()) == 0
    assert captioner.batches == []


def test_a_new_shard_is_added_and_the_others_stay(captioner, make_tar, pictures, configure, tmp_path, files):
    make_tar("00000", pictures(3))
    run(configure())
    before = files(tmp_path / "out")
    make_tar("00001", pictures(1))
    captioner.batches.clear()
    assert run(configure()) == 0
    assert captioner.batches == [1]
    assert {name: data for name, data in before.items() if name not in (CARD, RUN)}.items() < files(
        tmp_path / "out"
    ).items()


def test_a_shard_whose_file_is_gone_or_cut_is_made_again(captioner, make_tar, pictures, configure, tmp_path, files):
    make_tar("00000", pictures(3))
    make_tar("00001", pictures(3))
    run(configure())
    before = files(tmp_path / "out")
    (tmp_path / "out" / "00000.tar").unlink()
    with open(tmp_path / "out" / "00001.tar", "r+b") as file:
        file.truncate(1000)
    assert run(configure()) == 0
    assert files(tmp_path / "out") == before


def test_a_changed_input_is_an_error_that_names_it(captioner, make_tar, pictures, configure, tmp_path, files):
    make_tar("00000", pictures(3))
    make_tar("00001", pictures(3))
    run(configure())
    before = files(tmp_path / "out")
    make_tar("00001", pictures(4))
    with pytest.raises(ValueError) as caught:
        run(configure())
    assert "00001.tar" in str(caught.value) and "00000.tar" not in str(caught.value)
    assert files(tmp_path / "out") == before


def test_an_input_that_was_moved_is_the_same(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(3))
    run(configure())
    captioner.batches.clear()
    (tmp_path / "in").rename(tmp_path / "moved")
    assert run(configure(input=[str(tmp_path / "moved" / "*.tar")])) == 0
    assert captioner.batches == []


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"top_p": 0.5}, "columns.syn_text_fake.sampling.top_p: 0.9 there, 0.5 now"),
        ({"seed": 1}, "columns.syn_text_fake.sampling.seed: 0 there, 1 now"),
        ({"prefix": "a "}, "columns.syn_text_fake.sampling.prefix"),
        ({"batch_size": 3}, "columns.syn_text_fake.batch_size: 2 there, 3 now"),
        ({"dtype": "bf16"}, "columns.syn_text_fake.dtype: 'fp32' there, 'bf16' now"),
        ({"format": "jsonl"}, "format: 'webdataset' there, 'jsonl' now"),
        ({"column": "syn_text_y"}, "columns: ['syn_text_fake'] there, ['syn_text_y'] now"),
        ({"text_from_synthetic": True}, "text_from_synthetic: False there, True now"),
    ],
)
def test_another_fingerprint_is_an_error_that_names_the_field(
    captioner, make_tar, pictures, configure, tmp_path, files, changes, named
):
    make_tar("00000", pictures(1))
    run(configure())
    before = files(tmp_path / "out")
    with pytest.raises(ValueError) as caught:
        run(configure(**changes))
    first, *fields = str(caught.value).splitlines()
    assert len(fields) == 1 and named in fields[0]
    assert files(tmp_path / "out") == before


def test_other_weights_and_other_versions_are_named_together(captioner, make_tar, pictures, configure, monkeypatch):
    make_tar("00000", pictures(1))
    run(configure())
    captioner.weights_sha256 = "1" * 64
    monkeypatch.setattr(generate.runs.manifest, "version", lambda name: "9.9.9")
    with pytest.raises(ValueError) as caught:
        run(configure())
    fields = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert fields == [
        "columns.syn_text_fake.weights_sha256",
        "versions.capsmith",
        "versions.open_clip_torch",
        "versions.torch",
    ]


@pytest.mark.parametrize("changes", [{"max_error_rate": 0.5}, {"num_workers": 3}, {"device": None}])
def test_what_does_not_decide_the_bytes_may_change(captioner, make_tar, pictures, configure, changes):
    make_tar("00000", pictures(1))
    run(configure())
    assert run(configure(dtype="fp32", **changes)) == 0


def test_batch_size_and_dtype_are_chosen_once(captioner, make_tar, pictures, configure, tmp_path, monkeypatch):
    make_tar("00000", pictures(1))
    run(configure(batch_size=7, dtype="bf16"))
    make_tar("00001", pictures(9))
    assert run(configure(batch_size=None, dtype=None)) == 0
    assert captioner.batches[-2:] == [7, 2]
    run(configure(batch_size=None, dtype=None, output=tmp_path / "new"))
    written = json.loads((tmp_path / "new" / RUN).read_text())["fingerprint"]["columns"]["syn_text_fake"]
    assert (written["batch_size"], written["dtype"]) == (32, "fp32")


def test_the_library_of_products_is_chosen_once(captioner, make_tar, pictures, configure, tmp_path, monkeypatch):
    """A run goes on with the library that it began with, even if another is faster now; oneDNN needs no entry."""
    requested = []

    def load(name, pretrained, products, **_):
        requested.append(products)
        captioner.products = products or faster
        return captioner

    monkeypatch.setattr(generate.captions.load, "load_captioner", load)
    for number, (faster, then, given) in enumerate(
        [("torch", "onednn", None), ("onednn", "torch", None), ("onednn", "torch", "torch")]
    ):
        output, used = tmp_path / str(number), given or faster
        make_tar("00000", pictures(1))
        run(configure(output=output, products=given))
        column = json.loads((output / RUN).read_text())["fingerprint"]["columns"]["syn_text_fake"]
        assert column.get("products", "onednn") == used
        make_tar("00001", pictures(1))
        faster = then
        assert run(configure(output=output)) == 0 and requested == [given, used]
        with pytest.raises(ValueError, match=r"columns\.syn_text_fake\.products: .* there"):
            run(configure(output=output, products={"torch": "onednn", "onednn": "torch"}[used]))
        (tmp_path / "in" / "00001.tar").unlink()
        requested.clear()


def test_sampling_that_does_not_fit_the_captioner_is_an_error_at_the_start(
    captioner, make_tar, pictures, configure, tmp_path
):
    make_tar("00000", pictures(1))

    def check(sampling, **options):
        raise ValueError("max_length 99 exceeds 76")

    captioner.check = check
    with pytest.raises(ValueError, match="max_length 99"):
        run(configure())
    assert not (tmp_path / "out").exists()


def test_settings_may_change_while_nothing_is_done(captioner, make_tar, pictures, configure, tmp_path, files):
    path = make_tar("00000", pictures(2))
    with open(path, "r+b") as file:
        file.truncate(1000)
    assert run(configure()) == 1
    make_tar("00000", pictures(2))
    assert run(configure(seed=1, format="parquet")) == 0
    run(configure(seed=1, format="parquet", output=tmp_path / "fresh"))
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_run_json_and_markers_hold_no_secrets_and_the_same_command_resumes(tmp_path):
    column = {"captioner": "openai:http://me:word@host#m", "extra_body": '{"api_key": "abcdef123"}', "seed": 1}
    run = {"columns": {"syn_text_x": column}, "format": "webdataset"}
    write_run(tmp_path, run, ["a"])
    with ShardWriter(tmp_path, "a", input={"path": "s3://me:word@bucket/a.tar", "size": 7}):
        pass
    assert not re.search("abcdef123|word", (tmp_path / RUN).read_text() + (tmp_path / "a.done.json").read_text())
    assert read_marker(tmp_path, "a")["input"] == {"path": "s3://***bucket/a.tar", "size": 7}
    check_same(tmp_path, read_run(tmp_path), run)
    with pytest.raises(ValueError, match=r"columns.syn_text_x.seed: 1 there, 2 now$"):
        check_same(tmp_path, read_run(tmp_path), {**run, "columns": {"syn_text_x": {**column, "seed": 2}}})


def test_run_json_holds_the_fingerprint_to_the_letter(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(1))
    config = configure()
    run(config)
    written = json.loads((tmp_path / "out" / RUN).read_text())["fingerprint"]
    versions = written.pop("versions")
    assert written == {
        "rules": 5,
        "columns": {
            "syn_text_fake": {
                "captioner": "fake",
                "weights_sha256": "0" * 64,
                "sampling": config.sampling.model_dump(mode="json"),
                "gate": config.gate.model_dump(),
                "similarity": False,
                "dtype": "fp32",
                "batch_size": 2,
            }
        },
        "format": "webdataset",
        "captions_only": False,
        "replace_columns": False,
        "drop_text_embeddings": False,
        "text_from_synthetic": False,
        "limit": None,
    }
    assert versions["capsmith"] == "0.2" and all(value.count(".") == 1 for value in versions.values())
    assert list(versions) == ["torch", "open_clip_torch", "capsmith"]
    marker = read_marker(tmp_path / "out", "00000")
    stat = (tmp_path / "in" / "00000.tar").stat()
    assert marker["input"] == {
        "path": str(tmp_path / "in" / "00000.tar"),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }


def of_0_1(folder):
    """Turn a run into one that capsmith 0.1 began and did not finish."""
    run = json.loads((folder / RUN).read_text())["fingerprint"]
    del run["rules"]
    run["versions"]["capsmith"] = "0.1"
    (folder / RUN).write_text(json.dumps({"fingerprint": run}))
    (folder / "00001.done.json").unlink()


@pytest.mark.parametrize("changes", [{}, {"dry_run": True}, {"num_processes": 2}, {"seed": 1}])
def test_a_run_that_an_earlier_version_began_is_refused_and_stays_as_it_is(
    captioner, make_tar, pictures, configure, tmp_path, files, changes, capfd
):
    make_tar("00000", pictures(2))
    make_tar("00001", pictures(2, 2))
    run(configure())
    of_0_1(tmp_path / "out")
    before, message = (
        files(tmp_path / "out"),
        "capsmith 0.1 began this run, with other rules; finish it with capsmith 0.1, or use --overwrite",
    )
    captioner.batches.clear()
    if "num_processes" in changes:
        assert run(configure(**changes)) == 2 and message in capfd.readouterr().err
    else:
        with pytest.raises(ValueError, match=message):
            run(configure(**changes))
    assert files(tmp_path / "out") == before and captioner.batches == []


def test_overwrite_starts_anew_where_an_earlier_version_began(
    captioner, make_tar, pictures, configure, tmp_path, files
):
    make_tar("00000", pictures(2))
    make_tar("00001", pictures(2, 2))
    run(configure(output=tmp_path / "fresh"))
    run(configure())
    of_0_1(tmp_path / "out")
    assert run(configure(overwrite=True)) == 0
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_overwrite_starts_anew_and_leaves_what_is_not_its_own(
    captioner, make_tar, pictures, configure, tmp_path, files
):
    make_tar("00000", pictures(3))
    make_tar("00001", pictures(1))
    run(configure(format="jsonl"))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "in" / "00001.tar").unlink()
    assert run(configure(seed=5, overwrite=True)) == 0
    run(configure(seed=5, output=tmp_path / "fresh"))
    assert files(tmp_path / "out") == {**files(tmp_path / "fresh"), "notes.txt": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name, text", [("notes.txt", "mine"), (RUN, "[]"), (RUN, "no json"), ("00000.tar", "")])
def test_a_folder_that_is_not_ours_is_an_error_and_stays_as_it_is(
    captioner, make_tar, pictures, configure, tmp_path, files, name, text, overwrite
):
    make_tar("00000", pictures(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(ValueError, match=f"output {tmp_path / 'out'}"):
        run(configure(overwrite=overwrite))
    assert files(tmp_path / "out") == {name: text.encode()}


def test_an_output_that_is_a_file_is_an_error(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(1))
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is no folder"):
        run(configure())
    with pytest.raises(ValueError, match="out/run: cannot be read: Not a directory; give another folder"):
        run(configure(output=str(tmp_path / "out" / "run")))


def test_an_empty_folder_is_as_good_as_none(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(1))
    (tmp_path / "out").mkdir()
    assert run(configure()) == 0


def test_drawn_pictures_are_what_their_spec_says(captioner, configure, tmp_path):
    assert run(configure(input=["scenes:val,n=3"])) == 0
    captioner.batches.clear()
    assert run(configure(input=["scenes:val,n=3"])) == 0 and captioner.batches == []
    with pytest.raises(ValueError, match="scenes:val,n=4"):
        run(configure(input=["scenes:val,n=4"]))
    assert "scene" in next(read_records(str(tmp_path / "out" / "*.tar"))).meta


@pytest.mark.parametrize(
    "run, shards, problem",
    [
        ({"columns": {"x": {"dtype": {}}}}, [], r"dtype is \{\}"),
        ({"columns": {"x": {"products": []}}}, [], r"products is \[\]"),
        ({"columns": {"x": {"batch_size": "9"}}}, [], "batch_size is '9'"),
        ({"columns": {}, "batch_size": True}, [], "batch_size is True"),
        ({"columns": {}, "batch_size": -1}, [], "batch_size is -1"),
        ({"columns": {}, "dtype": "x"}, [], "dtype is 'x'"),
        ({"columns": {}, "versions": ["0.2"]}, [], r"versions is \['0.2'\]"),
        ({"columns": {}, "teachers": [{}]}, [], r"teachers is \[\{\}\]"),
        ({"columns": {}}, ["a", 1], "shards is not a list of names"),
        ({"columns": {}}, "a", "shards is not a list of names"),
    ],
)
def test_a_damaged_run_json_is_refused(tmp_path, run, shards, problem):
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": run, "shards": shards}))
    with pytest.raises(ValueError, match=f"its run.json is not one of ours: {problem}"):
        read_run(tmp_path)


@pytest.mark.parametrize("pictures", [{"a": 3}, {"a": "b.jpg"}, {"a": [3]}, ["a"], '{"a": ' * 5000])
def test_a_damaged_list_of_pictures_is_refused(tmp_path, pictures):
    text = pictures if isinstance(pictures, str) else json.dumps(pictures)
    (tmp_path / "pictures.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/pictures.json: "):
        read_pictures(tmp_path)
