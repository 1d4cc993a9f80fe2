import json

import open_clip
import pytest
import torch

from captioners.resolve import check_coca, find_weights, is_transformers, resolve, shipped_models
from captioners.safe_reading import attempt, reason


@pytest.fixture
def folder(tmp_path, tiny_config):
    """A folder in open_clip's layout, with an empty file of weights."""
    folder = tmp_path / "My Model-v2"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_config}))
    (folder / "open_clip_model.safetensors").touch()
    return folder


@pytest.fixture
def offline_hub(tmp_path, monkeypatch, fill_hub_cache):
    """An empty hub cache, without network; offline_hub(repository, folder) copies a folder into it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return lambda repository, folder: fill_hub_cache(tmp_path / "hub", repository, folder)


def test_shipped_models_resolve_by_name():
    assert "coca_small" in shipped_models()
    source = resolve("coca_small")
    assert (source.name, source.weights) == ("coca_small", None)
    assert source.model_cfg["text_cfg"]["vocab_size"] == 49408


def test_shipped_configs_name_themselves():
    for name in shipped_models():
        assert resolve(name).name == name


def test_a_folder_is_named_after_its_config_or_itself(folder, tiny_config):
    assert resolve(str(folder)).name == resolve(f"local-dir:{folder}").name == "my_model_v2"
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny_config, "capsmith": {"name": "mine"}}))
    assert resolve(str(folder)).name == "mine"


def test_a_file_of_weights_takes_the_config_beside_it(folder):
    other = folder / "epoch_3.pt"
    other.touch()
    assert resolve(str(other)).weights == other
    assert resolve(str(folder)).weights.name == "open_clip_model.safetensors"


def test_a_plain_model_config_beside_weights_is_read(folder, tiny_config):
    (folder / "open_clip_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(tiny_config))
    (folder / "open_clip_model.safetensors").rename(folder / "anything.pt")
    source = resolve(str(folder))
    assert source.model_cfg == tiny_config
    assert source.weights.name == "anything.pt"
    assert source.preprocess_from == ""


def test_a_transformers_model_is_none_of_open_clips(folder):
    (folder / "open_clip_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["Llava"]}))
    with pytest.raises(ValueError, match="My Model-v2.*holds a transformers model"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no model_cfg"),
        ('{"model_cfg": {}}', "vision_cfg is missing"),
    ],
)
def test_a_broken_config_is_named(folder, text, message):
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"open_clip_config.json.*{message}"):
        resolve(str(folder))


@pytest.mark.parametrize("value", ["x", 5, True, [["x"]]])
def test_options_of_a_tokenizer_that_are_no_object_are_named(folder, value):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="open_clip_config.json: tokenizer_kwargs is not a JSON object"):
        resolve(str(folder))


def test_an_error_without_words_is_its_kind():
    assert reason(AssertionError()) == reason(AssertionError("\x1b")) == "AssertionError"
    assert (
        reason(ValueError("set trust_remote_code=True"))
        == "it asks for code of its own to be run, which is never done"
    )


def test_whatever_a_library_raises_is_one_line():
    class Panic(BaseException):
        """As PyO3's, of libraries in Rust."""

    def fail(error):
        raise error

    with pytest.raises(ValueError, match="^here: at 3$"):
        attempt("here", fail, Panic("at\n3"))
    with pytest.raises(KeyboardInterrupt):
        attempt("here", fail, KeyboardInterrupt())


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="neither open_clip_config.json nor config.json"):
        resolve(str(tmp_path))


def test_safetensors_and_known_names_come_first(folder):
    for name in ("a.safetensors", "b.safetensors", "open_clip_pytorch_model.bin"):
        (folder / name).touch()
    assert find_weights(folder).name == "open_clip_model.safetensors"
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="may hold its weights in a.safetensors or b.safetensors"):
        find_weights(folder)
    (folder / "b.safetensors").unlink()
    assert find_weights(folder).name == "a.safetensors"
    (folder / "a.safetensors").unlink()
    assert find_weights(folder).name == "open_clip_pytorch_model.bin"


def test_an_unknown_name_says_what_was_looked_for():
    with pytest.raises(ValueError, match=r"no captioner 'coca_huge'.*coca_tiny.*coca_ViT-B-32"):
        resolve("coca_huge")


def test_an_architecture_takes_a_file_of_weights(tmp_path):
    path = tmp_path / "epoch_3.pt"
    path.touch()
    source = resolve("coca_ViT-B-32", str(path))
    assert (source.name, source.weights) == ("coca_vit_b_32_epoch_3", path)
    assert resolve("coca_ViT-B-32").weights is None


def test_an_unknown_tag_lists_the_tags():
    with pytest.raises(ValueError, match="'laion9b' is neither a file nor a tag of coca_ViT-B-32 .*laion2b_s13b_b90k"):
        resolve("coca_ViT-B-32", "laion9b")


def test_pretrained_goes_with_an_architecture_only(folder):
    with pytest.raises(ValueError, match="goes with an open_clip architecture"):
        resolve(str(folder), "laion2b_s13b_b90k")


def test_what_cannot_caption_is_refused_before_anything_is_fetched(monkeypatch):
    def never(*_, **__):
        raise AssertionError("fetched")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", never)
    monkeypatch.setattr(torch.nn.Module, "__init__", never)
    with pytest.raises(ValueError, match="coca_roberta-ViT-B-32.*hf_model_name is roberta-base.*not causal"):
        resolve("coca_roberta-ViT-B-32", "laion2b_s13b_b90k")
    with pytest.raises(ValueError, match="ViT-B-32.*multimodal_cfg is missing: not a CoCa"):
        resolve("ViT-B-32", "openai")


def test_every_coca_of_open_clip_but_the_bidirectional_one_is_taken():
    names = [name for name in open_clip.list_models() if "coca" in name and "roberta" not in name]
    assert len(names) >= 3
    for name in names:
        assert resolve(name).model_cfg["multimodal_cfg"]


def test_a_config_is_refused_with_every_reason(tiny_config, edit):
    config = edit(
        tiny_config,
        text_cfg__no_causal_mask=True,
        text_cfg__embed_cls=False,
        text_cfg__qk_norm=True,
        text_cfg__width=64,
        vision_cfg__output_tokens=False,
        vision_cfg__attentional_pool=None,
    )
    with pytest.raises(ValueError) as caught:
        check_coca(config, "here")
    for part in ("not causal", "embed_cls", "qk_norm", "width 64", "vision_cfg.output_tokens", "have width 48"):
        assert part in str(caught.value)
    check_coca(tiny_config, "here")


@pytest.mark.parametrize(
    "change", [{"attentional_pool": "parallel"}, {"attentional_pool": "cascade"}, {"pool_type": "none"}]
)
def test_a_tower_without_one_embedding_of_a_picture_is_refused(tiny_config, change):
    with pytest.raises(ValueError, match="here: .*vision_cfg does not pool a picture into one embedding"):
        check_coca(tiny_config | {"vision_cfg": tiny_config["vision_cfg"] | change}, "here")


def test_a_hub_repository_is_read_from_the_cache(offline_hub, folder):
    offline_hub("some/Captioner-1", folder)
    for name in ("some/Captioner-1", "hf-hub:some/Captioner-1"):
        source = resolve(name)
        assert source.name == "captioner_1"
        assert source.weights.name == "open_clip_model.safetensors"


def test_a_hub_repository_that_is_not_cached_is_an_error(offline_hub):
    with pytest.raises(ValueError, match="hub repository 'some/thing' cannot be fetched"):
        resolve("some/thing")


def test_a_hub_repository_is_refused_by_its_config_before_weights_are_fetched(offline_hub, folder, monkeypatch):
    (folder / "open_clip_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    offline_hub("some/vlm", folder)
    import huggingface_hub

    patterns = []
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: patterns.extend(k["allow_patterns"]) or fetch(*a, **k)
    )
    with pytest.raises(ValueError, match="holds a transformers model"):
        resolve("some/vlm")
    assert patterns
    assert not any("safetensors" in pattern or "bin" in pattern for pattern in patterns)


@pytest.mark.parametrize("files, expected", [
    ({"config.json": {"model_type": "llava"}}, True),
    ({"adapter_config.json": {"peft_type": "LORA"}}, True),
    # repositories of open_clip have both files
    ({"config.json": {"model_type": "llava"}, "open_clip_config.json": {}}, False),
    ({"config.json": {"embed_dim": 8, "model_type": "coca"}}, False),
    ({"config.json": {"model_cfg": {"embed_dim": 8}}}, False),
    ({"config.json": [1]}, False),
    ({}, False),
])  # fmt: skip
def test_transformers_models_are_known_by_their_small_files(tmp_path, offline_hub, files, expected):
    folder = tmp_path / "some vlm"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert is_transformers(str(folder)) is is_transformers(f"local-dir:{folder}") is expected
    offline_hub("some/vlm", folder)
    assert is_transformers("some/vlm") is is_transformers("hf-hub:some/vlm") is expected


def test_what_is_no_folder_and_no_repository_is_no_transformers_model(offline_hub, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for name in ("coca_ViT-B-32", "ViT-B/32", "coca_tiny", "nothing", str(tmp_path), str(tmp_path / "config.json")):
        assert not is_transformers(name)
    with pytest.raises(ValueError, match="hub repository 'some/thing' cannot be fetched"):
        is_transformers("some/thing")
