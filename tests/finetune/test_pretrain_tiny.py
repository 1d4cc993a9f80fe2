"""Making coca_tiny: with a seed, from alt texts only, into a folder that loads."""

import filecmp
import sys

import torch
from safetensors.torch import load_file

from captioners.load import load_captioner
from captioners.resolve import SHIPPED
from finetune.captioner import pretrain_tiny


def test_the_vocabulary_is_the_same_each_time(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        pretrain_tiny.write_tokenizer(tmp_path / name, scenes=200)
    assert filecmp.cmp(tmp_path / "one" / "tokenizer.json", tmp_path / "other" / "tokenizer.json", shallow=False)


def test_the_shipped_config_is_the_one_the_command_writes(tmp_path):
    pretrain_tiny.write_config(tmp_path)
    name = "open_clip_config.json"
    assert (tmp_path / name).read_text() == (SHIPPED / "coca_tiny" / name).read_text()


def test_it_pretrains_on_alt_text_and_ships_half_precision(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pretrain_tiny, "run", lambda config, run=pretrain_tiny.run: seen.append(config) or run(config))
    (tmp_path / "tiny").mkdir()
    pretrain_tiny.write_tokenizer(tmp_path / "tiny", scenes=200)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "pretrain_tiny",
            "--steps",
            "2",
            "--pictures",
            "60",
            "--folder",
            str(tmp_path / "tiny"),
            "--work",
            str(tmp_path / "work"),
        ],
    )
    pretrain_tiny.main()
    assert seen[0].input == ["scenes:train,n=20,level=1,captions=alt", "scenes:train,n=40,level=2,captions=alt"]
    assert seen[0].from_scratch
    assert {weight.dtype for weight in load_file(tmp_path / "tiny" / "open_clip_model.safetensors").values()} == {
        torch.float16
    }
    assert load_captioner(str(tmp_path / "tiny")).name == "coca_tiny"
