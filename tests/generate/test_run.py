"""Whole runs of a real captioner, with random weights, on drawn pictures."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import capsmith
from captioners.load import load_captioner
from generate.captions.config import GenerateConfig
from generate.captions.input_checks import warning_about_braces, warning_about_photographs
from generate.captions.run import run
from imagetext.shards import ShardWriter
from imagetext.sources import read_records, read_samples

COLUMN = "syn_text_random_tiny"
AS_THEY_COME = {"redraws": 0, "on_degenerate": "keep"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with coca_tiny's architecture and random weights."""
    folder = tmp_path_factory.mktemp("captioner")
    torch.manual_seed(0)
    load_captioner("coca_tiny", from_scratch=True).save(folder, "random_tiny")
    return str(folder)


def test_two_runs_of_drawn_pictures_are_equal_in_every_byte(model, tmp_path, files):
    options = {
        "input": ["scenes:val,n=20"],
        "model": model,
        "device": "cpu",
        "max_length": 16,
        "batch_size": 8,
        **AS_THEY_COME,
    }
    assert run(GenerateConfig(**options, output=tmp_path / "one", num_workers=1)) == 0
    assert run(GenerateConfig(**options, output=tmp_path / "two", num_workers=3)) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    written = list(read_records(str(tmp_path / "one" / "*.tar")))
    assert [record.key for record in written] == [sample.key for sample in list(read_samples("scenes:val,n=20"))[0]]
    assert len({record.syn_text[COLUMN] for record in written}) == 20  # the draws depend on the picture's key
    assert run(GenerateConfig(**{**options, "seed": 1}, output=tmp_path / "other")) == 0
    assert files(tmp_path / "one")["scenes-val2-00000.tar"] != files(tmp_path / "other")["scenes-val2-00000.tar"]


def test_the_command_line_runs_it(model, tmp_path, capsys):
    argv = [
        "generate",
        "--input",
        "scenes:val,n=3",
        "--model",
        model,
        "--output",
        str(tmp_path / "out"),
        "--max-length",
        "12",
        "--num-captions",
        "2",
        "--format",
        "jsonl",
        "--device",
        "cpu",
        "--on-degenerate",
        "keep",
    ]
    assert capsmith.main(argv) == 0
    printed = capsys.readouterr().out
    assert "architecture:" in printed and f"6 captions in {COLUMN} of 3 pictures, 0 without" in printed
    assert capsmith.main([*argv, "--top-p", "0.5"]) == 2
    assert f"columns.{COLUMN}.sampling.top_p: 0.9 there, 0.5 now" in capsys.readouterr().err
    assert capsmith.main([*argv[:-2], "--max-length", "1000", "--overwrite"]) == 2
    assert "max_length 1000" in capsys.readouterr().err


def test_the_built_in_captioner_says_that_it_knows_drawn_shapes_alone(tmp_path, drawn_and_photographs):
    drawn_picture, photographs = drawn_and_photographs
    options = {"model": "coca_tiny", "output": tmp_path / "out"}

    def told(*specs: str, **other: str) -> str:
        config = GenerateConfig(**options | other, input=list(specs))
        return warning_about_photographs(config, read_samples(config.input))

    assert told("scenes:val,n=2") == told(str(drawn_picture)) == told(str(photographs), model="some/other") == ""
    assert "coca_tiny knows only drawn shapes" in told(str(drawn_picture), str(photographs))
    assert "--model coca_ViT-L-14 --pretrained mscoco_finetuned_laion2b_s13b_b90k" in told(str(photographs))


@pytest.mark.parametrize(
    ("instruction", "warning"),
    [
        (
            "Alt text: {text}",
            "instruction: {text} is sent as it stands; for what the record has there, write {{ text }}",
        ),
        ("Rewrite { caption }", "{caption} is sent as it stands; for what the record has there, write {{ text }}"),
        ("{{ text }} and {syn_text_a}", "write {{ syn_text_a }}"),
        ("See {json.title}", "{json} is sent"),
        ('Answer as {"text": "a caption"} or {text: ...}', ""),
        ("Describe {this}. {{ text }} {{text}} {% if text %}{{ text }}{% endif %}", ""),
    ],
)
def test_a_name_of_the_record_in_single_braces_is_told(instruction, warning):
    config = GenerateConfig(input=["in"], output="out", model="coca_tiny", instruction=instruction)
    told = warning_about_braces(config)
    assert warning in told and bool(warning) == bool(told)


@pytest.fixture
def drawn_and_photographs(tmp_path):
    """A shard of records of drawn scenes, and a folder with a picture that is no drawn scene."""
    (shard,) = read_samples("scenes:val,n=1")
    with ShardWriter(tmp_path / "drawn", "00000", format="webdataset", columns=[COLUMN]) as writer:
        for sample in shard:
            writer.write(replace(sample, columns={COLUMN: ("a red circle",)}))
    (tmp_path / "photographs").mkdir()
    Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "photographs" / "one.jpg")
    return next((tmp_path / "drawn").glob("*.tar")), tmp_path / "photographs"
