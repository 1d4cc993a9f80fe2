"""CLIP models of open_clip: their names, what is refused before loading, and what is loaded."""

import json
import os
import shutil

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captioners.clip import captioner_name, clip_source, find_clip, is_open_clip, load_clip, preprocessing
from captioners.resolve import SHIPPED

COCA_TINY = SHIPPED / "coca_tiny"


def test_names_of_open_clip(tmp_path):
    assert all(
        map(
            is_open_clip, ["ViT-B-32:openai", "ViT-B/32", "ViT-B-32", "hf-hub:org/name", "local-dir:x", str(COCA_TINY)]
        )
    )
    assert not any(
        map(is_open_clip, ["minilm", "sentence-transformers/all-mpnet-base-v2", "all-MiniLM-L6-v2", str(tmp_path)])
    )


def test_names_are_open_clips_own(tmp_path):
    for name, expected in (
        ("ViT-B-32:openai", ("ViT-B-32", "openai")),
        ("ViT-B/32:a/b.pt", ("ViT-B-32", "a/b.pt")),
        ("hf-hub:org/name", ("hf-hub:org/name", None)),
        ("org/name", ("hf-hub:org/name", None)),
        ("local-dir:x", ("local-dir:x", None)),
        (str(tmp_path), (f"local-dir:{tmp_path}", None)),
    ):
        assert clip_source(name) == expected
    for name, problem in (
        ("ViT-B/32:", r"which weights\? Say ViT-B-32:TAG or ViT-B-32:FILE \(tags: openai"),
        ("coca", "no folder"),
        ("../nothing", "no folder"),
        ("a:b", "no ARCHITECTURE:TAG"),
    ):
        with pytest.raises(ValueError, match=problem):
            clip_source(name)


def test_a_model_has_the_name_that_its_captions_have(tmp_path):
    assert captioner_name(str(COCA_TINY)) == captioner_name(f"local-dir:{COCA_TINY}") == "coca_tiny"
    for name in ("coca_ViT-B-32:laion2b_s13b_b90k", "coca_ViT-B/32:weights/laion2b_s13b_b90k.pt"):
        assert captioner_name(name) == "coca_vit_b_32_laion2b_s13b_b90k"
    assert captioner_name("hf-hub:org/My.CoCa") == captioner_name("org/My.CoCa") == "my_coca"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "capsmith": {"name": "ours"}}))
    assert captioner_name(str(tmp_path)) == "ours"


def test_a_model_comes_with_its_weights_and_its_tokenizer():
    model, tokenizer = load_clip(find_clip(str(COCA_TINY)))
    expected, _, transform = open_clip.create_model_and_transforms(f"local-dir:{COCA_TINY}")
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    assert torch.equal(
        tokenizer(["a red circle"]), open_clip.get_tokenizer(f"local-dir:{COCA_TINY}")(["a red circle"])
    )
    picture = Image.effect_mandelbrot((90, 70), (-2, -1.5, 1, 1.5), 9).convert("RGB")
    assert torch.equal(preprocessing(model.visual.preprocess_cfg)(picture), transform(picture))


def test_what_has_no_weights_has_random_ones_only_where_that_is_allowed(tmp_path):
    shutil.copytree(COCA_TINY, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    bare = find_clip(str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="weights"):
        load_clip(bare)
    model, _ = load_clip(bare, random=True)
    assert not torch.equal(model.visual.conv1.weight, load_clip(find_clip(str(COCA_TINY)))[0].visual.conv1.weight)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_cfg": {"text_cfg": {"vocab_size": 10**7}}}, "its config asks for 2,562,454,913 weights"),
        ({"model_cfg": {"vision_cfg": {"image_size": 10**5}}}, "vision_cfg.image_size is 100000, at most 4,096"),
        ({"preprocess_cfg": {"mean": "grey"}}, ""),
        ({"preprocess_cfg": {"interpolation": "\x1b[2J"}}, ""),
    ],
)
def test_a_hostile_or_broken_config_is_one_line(tmp_path, change, message):
    folder = shutil.copytree(COCA_TINY, tmp_path / "theirs")
    config = json.loads((folder / "open_clip_config.json").read_text())
    for section, values in change.items():
        for name, value in values.items():
            config[section][name] = config[section][name] | value if isinstance(value, dict) else value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        load_clip(find_clip(str(folder)))
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_weights_that_are_integers_are_refused(tmp_path):
    folder = shutil.copytree(COCA_TINY, tmp_path / "theirs")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["logit_scale"] = weights["logit_scale"].short()
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="open_clip_model.safetensors: 1 of its weights are integers: logit_scale"):
        load_clip(find_clip(str(folder)))


def test_a_hub_repository_has_the_bounds_of_a_folder(tmp_path, monkeypatch):
    folder = shutil.copytree(COCA_TINY, tmp_path / "theirs")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    monkeypatch.setattr(
        "open_clip.factory.download_pretrained_from_hf", lambda _, filename="", **__: str(folder / filename)
    )
    weights = str(folder / "open_clip_model.safetensors")
    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", lambda _: weights)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 10**7
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="^org/name: its config asks for 2,562,454,913 weights"):
        load_clip(find_clip("org/name"))
    os.truncate(folder / "open_clip_config.json", 2**23 + 1)
    with pytest.raises(ValueError, match="open_clip_config.json has 8,388,609 bytes, at most 8,388,608 are read"):
        find_clip("org/name")


@pytest.mark.parametrize(
    "field, name, config, message",
    [
        ("hf_model_name", "../theirs", {}, "'../theirs', which is no org/name"),
        ("hf_tokenizer_name", "/etc/ssl", {}, "'/etc/ssl', which is no org/name"),
        ("hf_model_name", "org/tower", {"auto_map": {"AutoModel": "x.Y"}, "model_type": "own"}, "has type 'own'"),
        (
            "hf_model_name",
            "org/tower",
            {"model_type": "bert", "num_hidden_layers": 10**6},
            "is 1000000, at most 1,000",
        ),
        (
            "hf_model_name",
            "org/tower",
            {"model_type": "bert", "vocab_size": 10**7},
            "its config asks for 7,766,693,249",
        ),
    ],
)
def test_a_text_tower_of_transformers_has_bounds(tmp_path, monkeypatch, field, name, config, message):
    folder, tower = shutil.copytree(COCA_TINY, tmp_path / "theirs"), tmp_path / "org/tower"
    tower.mkdir(parents=True)
    (tower / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)  # where org/tower is a folder, and no network is needed
    theirs = json.loads((folder / "open_clip_config.json").read_text())
    theirs["model_cfg"]["text_cfg"] = {field: name, "hf_pooler_type": "mean_pooler"}
    del theirs["model_cfg"]["multimodal_cfg"]
    (folder / "open_clip_config.json").write_text(json.dumps(theirs))
    with pytest.raises(ValueError) as caught:
        load_clip(find_clip(str(folder)))
    assert message in str(caught.value)


def test_a_config_that_asks_for_code_to_be_run_is_refused_before_anything_is_loaded(tmp_path):
    config = json.loads((COCA_TINY / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="ask for code to be run.*trust_remote_code"):
        find_clip(str(tmp_path))
