"""`capsmith verify`: finds whatever is not as the markers say, and nothing in a set that is whole."""

import json

import pytest

from captioners.base import Caption, Captioned
from generate.engine import run as generate
from generate.verify import VerifyConfig, run
from imagetext.shards import ShardWriter
from imagetext.sources import read_records


@pytest.fixture(params=["webdataset", "jsonl", "parquet"])
def made(request, captioner, make_tar, pictures, configure, tmp_path):
    """A finished set of two shards of four pictures, one of which failed; its folder."""
    for name in ("00000", "00001"):
        make_tar(name, [*pictures(3), b"no picture"])
    assert generate(configure(format=request.param, max_error_rate=1)) == 0
    return tmp_path / "out"


def verified(folder, capsys, **options) -> tuple[int, list[str]]:
    """Exit code and problems."""
    capsys.readouterr()
    code = run(VerifyConfig(folder=folder, **options))
    return code, [line.removeprefix("problem: ") for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]


def shard(folder, name="00000"):
    return next(path for path in folder.iterdir() if path.name.startswith(f"{name}.") and path.suffix in (".tar", ".jsonl", ".parquet"))


def test_a_whole_set_has_no_problem(made, capsys):
    assert verified(made, capsys, decode=True) == (0, [])
    run(VerifyConfig(folder=made))
    assert capsys.readouterr().out.splitlines()[-1] == f"{made}: 8 records in 2 shards; all as the markers say"


def test_a_changed_byte_and_a_cut_are_found(made, capsys):
    path = shard(made)
    whole = path.read_bytes()
    at = whole.index(b"original 1") if path.suffix != ".parquet" else len(whole) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    code, problems = verified(made, capsys)
    assert code == 1 and problems[0] == f"{path.name}: its bytes are not those that its marker vouches for"
    assert len(problems) == 1 or path.suffix == ".parquet"
    path.write_bytes(whole[:len(whole) * 2 // 3])
    code, problems = verified(made, capsys)
    assert code == 1 and "bytes, its marker says" in problems[0] and len(problems) > 1
    path.unlink()
    code, problems = verified(made, capsys)
    assert code == 1 and len(problems) == 1 and path.name in problems[0]


@pytest.mark.parametrize("field, wrong, told", [("rows", 5, "4 records, its marker says 5"), ("failed", 0, "1 failed, its marker says 0"),
                                                ("captions", {"syn_text_fake": 14}, "15 captions in syn_text_fake, its marker says 14")])
def test_counts_that_are_not_the_markers_are_found(made, capsys, field, wrong, told):
    path = made / "00001.done.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: wrong}))
    assert verified(made, capsys) == (1, [f"{shard(made, '00001').name}: {told}"])


def test_a_shard_without_a_marker_a_broken_marker_and_a_key_in_two_shards_are_found(made, capsys):
    format = json.loads((made / "00000.done.json").read_text())["format"]
    with ShardWriter(made, "00002", format=format) as writer:
        writer.write(next(read_records(str(shard(made)))))
    assert verified(made, capsys) == (1, ["1 keys stand in the set more than once"])
    (made / "00002.done.json").unlink()
    code, [problem] = verified(made, capsys)
    assert code == 1 and problem.startswith("00002.") and "no marker vouches for it" in problem
    (made / "00001.done.json").write_text("{")
    code, problems = verified(made, capsys)
    assert code == 1 and problems[0].startswith("00001.done.json: ")


def test_a_caption_of_many_pictures_is_a_problem_from_a_share_on(captioner, make_tar, pictures, configure, tmp_path, capsys):
    make_tar("00000", pictures(8))
    whole = captioner.caption

    def caption(images, sampling, **options):
        for found in whole(images, sampling, **options):
            yield Captioned(found.key, (Caption("a photo of a dog", 0.0, False), *found.captions[1:])) if found.key[-1] in "024" else found
    captioner.caption = caption
    assert generate(configure()) == 0
    assert verified(tmp_path / "out", capsys, most_repeated=0.4) == (0, [])
    assert verified(tmp_path / "out", capsys) == (1, ["syn_text_fake: 'a photo of a dog' stands for at least 3 of 8 pictures"])


def test_a_picture_that_does_not_decode_is_found_where_asked_for(made, capsys, monkeypatch):
    def undecodable(data):
        raise ValueError("broken")
    monkeypatch.setattr("generate.verify.decode_image", undecodable)
    assert verified(made, capsys)[0] == 0
    code, problems = verified(made, capsys, decode=True)
    assert code == 1 and len(problems) == 6 and all(problem.endswith(": broken") for problem in problems)


def test_a_folder_that_holds_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run of ours"):
        run(VerifyConfig(folder=tmp_path))
