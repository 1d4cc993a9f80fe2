"""`capsmith verify` finds everything that contradicts the markers, and nothing in a complete set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import capsmith
from captioners.base import Caption, Captioned
from generate.captions.run import run as generate
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce
from generate.reinforce.teachers import Teacher
from generate.sets.gallery import GalleryConfig
from generate.sets.gallery import run as show
from generate.sets.join import JoinConfig
from generate.sets.join import run as join
from generate.sets.verify import VerifyConfig, run
from imagetext.reinforced.embeddings import pack, unpack
from imagetext.shards import ShardWriter
from imagetext.sources import read_records


@pytest.fixture(params=["webdataset", "jsonl", "parquet"])
def finished_set(request, captioner, make_tar, pictures, configure, tmp_path):
    """The folder of a finished set of two shards, with four pictures each, one of which failed."""
    for name in ("00000", "00001"):
        make_tar(name, [*pictures(3), b"no picture"])
    assert generate(configure(format=request.param, max_error_rate=1, num_workers=0)) == 0
    return tmp_path / "out"


def verified(folder, capsys, **options) -> tuple[int, list[str]]:
    """Return the exit code and the problems of a verification."""
    capsys.readouterr()
    code = run(VerifyConfig(folder=folder, **options))
    return code, [
        line.removeprefix("problem: ") for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")
    ]


def shard(folder, name="00000"):
    return next(
        path
        for path in folder.iterdir()
        if path.name.startswith(f"{name}.") and path.suffix in (".tar", ".jsonl", ".parquet")
    )


def test_a_whole_set_has_no_problem(finished_set, capsys):
    assert verified(finished_set, capsys, decode=True) == (0, [])
    run(VerifyConfig(folder=finished_set))
    assert capsys.readouterr().out.splitlines()[-1] == f"{finished_set}: 8 records in 2 shards; all as the markers say"


def test_a_changed_byte_and_a_cut_are_found(finished_set, capsys):
    path = shard(finished_set)
    content = path.read_bytes()
    index = content.index(b"original 1") if path.suffix != ".parquet" else len(content) // 2
    path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
    code, problems = verified(finished_set, capsys)
    assert code == 1 and problems[0] == f"{path.name}: its bytes do not match the hash in its marker"
    assert len(problems) == 1 or path.suffix == ".parquet"
    path.write_bytes(content[: len(content) * 2 // 3])
    code, problems = verified(finished_set, capsys)
    assert code == 1 and "bytes, its marker says" in problems[0] and len(problems) > 1
    path.unlink()
    code, problems = verified(finished_set, capsys)
    assert code == 1 and len(problems) == 1 and path.name in problems[0]


@pytest.mark.parametrize(
    "field, wrong, message",
    [
        ("rows", 5, "4 records, its marker says 5"),
        ("failed", 0, "1 failed, its marker says 0"),
        ("captions", {"syn_text_fake": 14}, "15 captions in syn_text_fake, its marker says 14"),
    ],
)
def test_counts_that_are_not_the_markers_are_found(finished_set, capsys, field, wrong, message):
    path = finished_set / "00001.done.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: wrong}))
    assert verified(finished_set, capsys) == (1, [f"{shard(finished_set, '00001').name}: {message}"])


def test_a_shard_without_a_marker_a_broken_marker_and_a_key_in_two_shards_are_found(finished_set, capsys):
    format = json.loads((finished_set / "00000.done.json").read_text())["format"]
    with ShardWriter(finished_set, "00002", format=format) as writer:
        writer.write(next(read_records(str(shard(finished_set)))))
    assert verified(finished_set, capsys) == (1, ["1 keys are in the set more than once"])
    (finished_set / "00002.done.json").unlink()
    code, [problem] = verified(finished_set, capsys)
    assert code == 1 and problem.startswith("00002.") and "has no marker" in problem
    for broken in ("{", "[" * 100_000, '{"file": "/dev/zero", "size": 0}', '{"captions": "3"}'):
        (finished_set / "00001.done.json").write_text(broken)
        code, problems = verified(finished_set, capsys)
        assert code == 1 and problems[0].startswith("00001.done.json: ")


def test_a_shard_of_an_earlier_run_in_another_format_is_found(finished_set, capsys):
    path = shard(finished_set)
    other = next(suffix for suffix in (".tar", ".parquet") if suffix != path.suffix)
    path.with_suffix(other).write_bytes(b"of an earlier run")
    code, [problem] = verified(finished_set, capsys)
    assert code == 1 and problem.startswith(
        f"00000{other}: is not a shard of this set, whose shard of that name is 00000."
    )


def test_a_set_with_a_failed_shard_or_with_none_is_not_whole(
    captioner, make_tar, pictures, configure, tmp_path, capsys
):
    make_tar("00000", pictures(3))
    path = make_tar("00001", pictures(3, 3))
    content = open(path, "rb").read()
    with open(path, "r+b") as file:
        file.truncate(1000)
    message = "00001: is missing: it failed or was not begun; run the command that made the set again"
    assert generate(configure()) == 1 and verified(tmp_path / "out", capsys) == (1, [message])
    assert generate(configure(input=[path], output=tmp_path / "none")) == 1 and verified(
        tmp_path / "none", capsys
    ) == (1, [message])
    with open(path, "wb") as file:
        file.write(content)
    assert generate(configure()) == 0 and verified(tmp_path / "out", capsys) == (0, [])
    for path in (tmp_path / "out").glob("0000*"):
        path.unlink()
    assert verified(tmp_path / "out", capsys) == (1, [message.replace("00001", "00000"), message])
    run_json = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps({"fingerprint": run_json["fingerprint"]}))  # as 0.1 wrote it
    assert verified(tmp_path / "out", capsys) == (1, ["no shard is there"])


def test_a_joined_set_is_verified_and_shown(captioner, make_tar, pictures, configure, tmp_path, capsys):
    for name in ("00000", "00001"):
        path = make_tar(name, pictures(2, int(name)))
    assert generate(configure(captions_only=True, output=tmp_path / "apart")) == 0
    options = {"input": [str(tmp_path / "in" / "*.tar")], "captions": [str(tmp_path / "apart")]}
    assert (
        join(JoinConfig(**options, output=tmp_path / "joined"))
        == join(JoinConfig(**options, output=tmp_path / "joined"))
        == 0
    )
    assert verified(tmp_path / "joined", capsys) == (0, [])
    assert show(GalleryConfig(folder=tmp_path / "joined")) == 0
    assert (tmp_path / "joined" / "gallery.html").read_text().count("data:image/jpeg") == 4
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="cut or damaged"):
        join(JoinConfig(**options, output=tmp_path / "half"))
    assert verified(tmp_path / "half", capsys) == (
        1,
        ["00001: is missing: it failed or was not begun; run the command that made the set again"],
    )
    with pytest.raises(ValueError, match="holds a run of capsmith generate, and this is capsmith join"):
        join(JoinConfig(**options, output=tmp_path / "apart"))
    (tmp_path / "apart" / "00001.tar").unlink()
    with pytest.raises(ValueError, match="1 of its shards are not there .00001."):
        join(JoinConfig(**options, output=tmp_path / "new"))


@pytest.mark.parametrize(("alike", "count"), [(9, 30), (10, 30)])
def test_a_caption_of_many_pictures_is_printed_and_from_ten_pictures_and_a_share_on_a_problem(
    alike, count, captioner, make_tar, pictures, configure, tmp_path, capsys
):
    make_tar("00000", pictures(count))
    original_caption = captioner.caption

    def caption(requests, sampling, **options):
        for captioned in original_caption(requests, sampling, **options):
            texts = f"a photo of cat {captioned.key}", f"a photo of dog {captioned.key}"
            if int(captioned.key) < alike:
                texts = "a photo of a dog", texts[1]
            yield Captioned(captioned.key, tuple(Caption(text, 0.0, False) for text in texts))

    captioner.caption = caption
    assert generate(configure()) == 0
    line = f"syn_text_fake: at least {alike} of {count} pictures ({alike / count:.1%}) have 'a photo of a dog'"
    assert f"  {line}\n" in capsys.readouterr().out
    assert run(VerifyConfig(folder=tmp_path / "out")) == int(alike == 10)
    assert f"{line}\n" in capsys.readouterr().out
    assert verified(tmp_path / "out", capsys, most_repeated=0.34) == (0, [])
    assert verified(tmp_path / "out", capsys) == ((1, [line]) if alike == 10 else (0, []))


def test_captions_that_pictures_share_are_counted_as_by_the_run(
    captioner, make_tar, pictures, configure, tmp_path, capsys
):
    """A shard's marker has no room for all its captions, and some pictures fail, so the counts are lower bounds."""
    original_caption = captioner.caption

    def caption(requests, sampling, **options):
        for captioned in original_caption(requests, sampling, **options):
            number = int(captioned.key)
            texts = f"a photo of dog {number}", "a photo of a dog" if number % 30 == 0 else f"a photo of cat {number}"
            yield Captioned(captioned.key, tuple(Caption(text, 0.0, False) for text in texts))

    captioner.caption = caption
    for name in ("00000", "00001"):
        make_tar(name, [*pictures(100), b"no picture"])
    assert generate(configure()) == 0
    (line,) = [line.strip() for line in capsys.readouterr().out.splitlines() if "at least" in line]
    assert run(VerifyConfig(folder=tmp_path / "out")) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_a_picture_that_does_not_decode_is_found_where_asked_for(finished_set, capsys, monkeypatch):
    def undecodable(data):
        raise ValueError("broken")

    monkeypatch.setattr("generate.sets.verify.decode_image", undecodable)
    assert verified(finished_set, capsys)[0] == 0
    code, problems = verified(finished_set, capsys, decode=True)
    assert code == 1 and len(problems) == 6 and all(problem.endswith(": broken") for problem in problems)


def test_a_folder_that_holds_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run of ours"):
        run(VerifyConfig(folder=tmp_path))
    with pytest.raises(ValueError, match="typo: no such folder"):
        run(VerifyConfig(folder=tmp_path / "typo"))


# --- reinforced sets -------------------------------------------------------------------------------------------------


class FakeTeacher(Teacher):
    """Embeddings of 2 and 3 numbers, by the teacher's name."""

    def embed(self, views, texts, batch_size):
        pixels = views.float().mean((2, 3))[:, : self.dimension] + 1
        numbers = torch.tensor([[len(text), sum(text.encode()), 1.0] for text in texts]).reshape(-1, 3)[
            :, : self.dimension
        ]
        return torch.nn.functional.normalize(pixels), torch.nn.functional.normalize(numbers)


def load_teachers(names, device, dtype):
    return [
        FakeTeacher(
            name,
            None,
            None,
            size=(16, 16),
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            dimension=2 + number,
            logit_scale=100.0,
            logit_bias=None,
            weights_sha256="0" * 64,
        )
        for number, name in enumerate(names)
    ]


@pytest.fixture
def reinforced(monkeypatch, tmp_path):
    """Reinforce a set: `reinforced(folder, views=4)`; its folder."""
    monkeypatch.setattr("generate.reinforce.run.load_teachers", load_teachers)

    def make(folder, **changes):
        config = {
            "input": [str(folder / f"*{shard(folder).suffix}")],
            "teacher": ["a", "b"],
            **({} if changes.get("convert") else {"views": 3, "size": 16}),
            "output": tmp_path / "new",
            "num_workers": 0,
            "device": "cpu",
            "max_error_rate": 1,
            **changes,
        }
        assert reinforce(ReinforceConfig(**config)) == 0
        return config["output"]

    return make


def rewrite(folder, changes) -> None:
    """Write the first shard anew; each change is applied, in place, to the members of one of its good records."""
    format, changes = json.loads((folder / "00000.done.json").read_text())["format"], iter(changes)
    records = list(read_records(str(shard(folder))))
    with ShardWriter(folder, "00000", format=format) as writer:
        for record in records:
            if not record.error:
                next(changes)(record.members)
            writer.write(record)


def of_embeddings(change):
    """Return a change of members that changes the embeddings, given by name, in place."""

    def of_members(members):
        embeddings = unpack(members)
        change(embeddings)
        members["npz"] = pack(embeddings, "npz")

    return of_members


def test_a_whole_reinforced_set_has_no_problem_in_any_format(finished_set, reinforced, capsys, tmp_path):
    folder = reinforced(finished_set, format=json.loads((finished_set / "00000.done.json").read_text())["format"])
    assert verified(folder, capsys) == (0, [])
    run(VerifyConfig(folder=folder))
    assert "6 of 8 records (75.0%) have embeddings in npz" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("finished_set", ["webdataset"], indirect=True)
def test_a_whole_reinforced_set_has_no_problem_whatever_it_holds(finished_set, reinforced, capsys, tmp_path):
    for number, changes in enumerate(
        (
            {"embeddings": "pth.gz"},
            {"embeddings": "none", "teacher": []},
            {"text_from_synthetic": True},
            {"columns": "syn_text_f"},
        )
    ):
        assert verified(reinforced(finished_set, **changes, output=tmp_path / f"new{number}"), capsys) == (0, [])
    converted = reinforced(tmp_path / "new0", convert=True, teacher=[], output=tmp_path / "converted")
    assert verified(converted, capsys) == (0, [])
    rewrite(converted, [of_embeddings(lambda rows: rows.update(image_emb=rows["image_emb"][:0]))] * 3)
    assert verified(converted, capsys) == (
        1,
        [
            f"00000.tar: 00000_00{number}: embeddings that are not of these views and texts: image_emb: 0 rows for 3"
            for number in range(3)
        ],
    )


CHANGES = [  # changes of a record's members, and the messages
    (
        lambda members: members.update({"paug.json": b"{"}),
        ["paug.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"],
    ),
    (lambda members: members.pop("paug.json"), ["no paug.json"]),
    (
        lambda members: members.update({"paug.json": b'{"param_aug": []}'}),
        [
            "paug.json: 0 views, run.json says 3",
            "embeddings that are not of these views and texts: image_emb: 3 rows for 0",
        ],
    ),
    (lambda members: members.pop("npz"), ["no npz"]),
    (
        lambda members: [members.pop("paug.json"), members.update(npz=b"damaged")],
        ["no paug.json", "npz: no embeddings that can be read safely: File is not a zip file"],
    ),
    (
        of_embeddings(lambda rows: [rows.pop("syn_text_fake_emb"), rows.update(other_emb=rows["text_emb"])]),
        ["embeddings that are not of these views and texts: syn_text_fake_emb: 0 rows for 5, other_emb: 1 rows for 0"],
    ),
    (
        of_embeddings(lambda rows: rows["image_emb"][1].fill_(torch.nan)),
        ["npz: image_emb: not a table of finite numbers with a row for each embedding"],
    ),
    (
        of_embeddings(lambda rows: rows.update({name: matrix[:, :4] for name, matrix in rows.items()})),
        [
            f"{name}: 4 numbers in a row, run.json's teachers give 5"
            for name in ("image_emb", "text_emb", "syn_text_fake_emb")
        ],
    ),
    (
        of_embeddings(lambda rows: rows.update(text_emb=rows["text_emb"][:, :4])),
        ["embeddings of different lengths: image_emb: 5, text_emb: 4, syn_text_fake_emb: 5"],
    ),
    (
        of_embeddings(lambda rows: [rows["image_emb"][1:, :2].mul_(1.1), rows["text_emb"][:, 2:].mul_(0.5)]),
        [
            "image_emb: 2 of 3 rows have a length other than 1 in teacher 0's part, the first 1.1",
            "text_emb: 1 of 1 rows have a length other than 1 in teacher 1's part, the first 0.5",
        ],
    ),
]


def test_views_and_embeddings_that_are_not_of_their_record_are_all_told(
    captioner, make_tar, pictures, configure, reinforced, capsys, tmp_path
):
    make_tar("00000", pictures(len(CHANGES)))
    assert generate(configure(num_workers=0)) == 0
    folder = reinforced(tmp_path / "out")
    assert verified(folder, capsys) == (0, [])
    rewrite(folder, [change for change, _ in CHANGES])
    assert verified(folder, capsys) == (
        1,
        [
            f"00000.tar: 00000_{number:03d}: {message}"
            for number, (_, messages) in enumerate(CHANGES)
            for message in messages
        ],
    )
    run(VerifyConfig(folder=folder))
    assert "9 of 10 records (90.0%) have embeddings in npz" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("finished_set", ["webdataset"], indirect=True)
def test_a_configuration_of_other_teachers_is_found(finished_set, reinforced, capsys):
    path = reinforced(finished_set) / "config.json"
    config = json.loads(path.read_text())
    config["teachers"][1]["dimension"] = 7
    path.write_text(json.dumps({**config, "num_samples": 4}))
    assert verified(path.parent, capsys) == (
        1,
        ["config.json: num_samples: 4, run.json says 3", "config.json: teachers.1.dimension: 7, run.json says 3"],
    )
    for wrong in ("{", "[]", "{}", '{"teachers": [5]}'):
        path.write_text(wrong)
        code, [problem] = verified(path.parent, capsys)
        assert code == 1 and problem.startswith("config.json: ")
    path.unlink()
    code, [problem] = verified(path.parent, capsys)
    assert code == 1 and problem.startswith("config.json: ")


@pytest.mark.parametrize("finished_set", ["webdataset"], indirect=True)
def test_a_set_without_embeddings_is_verified_without_torch(finished_set):
    code = (
        "import sys\nfrom generate.sets.verify import VerifyConfig, run\n"
        "sys.exit(run(VerifyConfig(folder=sys.argv[1])) or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished_set)],
        env={**os.environ, "PYTHONPATH": str(Path(capsmith.__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "change", [{"teachers": None}, {"teachers": {"0": 5}}, {"teachers": {"0": {}}}, {"views": ...}, {"convert": ...}]
)
def test_a_reinforced_sets_damaged_run_json_is_told_in_a_sentence(tmp_path, change):
    """... stands for a field that is not there."""
    teachers = {"0": {"dimension": 3}}
    fields = {"embedded_columns": [], "views": 1, "embeddings": "npz", "convert": False, "text_from_synthetic": False}
    changed = {"columns": {}, "teachers": teachers, **fields, **change}
    fingerprint = {name: value for name, value in changed.items() if value is not ...}
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": fingerprint, "shards": []}))
    with pytest.raises(ValueError, match="its run.json (does not describe a reinforced set|is not one of ours)"):
        run(VerifyConfig(folder=str(tmp_path)))
