import json
import shutil
import subprocess
import sys

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from captioners.weights import state_sha256


def outputs(model, tokens=((1, 5, 6, 7, 2),)):
    """The outputs of a CoCa for a picture and a caption."""
    tokens = torch.tensor(tokens)
    padded = torch.nn.functional.pad(tokens, (0, 16 - tokens.shape[1]))
    image = torch.randn(len(tokens), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(image, padded)


def assert_same_model(model, other):
    ours, theirs = outputs(model), outputs(other)
    for key in ("image_features", "text_features", "logits"):
        assert torch.equal(ours[key], theirs[key])


@pytest.fixture
def saved(captioner, tmp_path):
    captioner.save(tmp_path / "saved", "tiny_one")
    return tmp_path / "saved"


# Saving and loading


def test_what_is_saved_loads_in_open_clip_strictly(captioner, saved):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{saved}")
    assert_same_model(model, captioner.model)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{saved}")
    ids = captioner.encode_text_ids("a red circle")
    assert tokenizer(["a red circle"])[0].tolist() == ids + [0] * (16 - len(ids))
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    assert torch.equal(preprocess(image), captioner.normalise(captioner.preprocess(image)))


def test_open_clip_loads_what_is_saved_strictly_indeed(saved):
    weights = load_file(saved / "open_clip_model.safetensors")
    weights.pop("text.ln_final.bias")
    save_file(weights, saved / "open_clip_model.safetensors")
    with pytest.raises(RuntimeError, match="text.ln_final.bias"):
        open_clip.create_model_and_transforms(f"local-dir:{saved}")


def test_a_config_that_does_not_say_custom_text_says_it_when_saved(make_captioner, tmp_path):
    """Without custom_text open_clip builds a CLIP; a CoCa is recognised by its multimodal_cfg."""
    captioner = make_captioner(custom_text=None)
    captioner.save(tmp_path, "plain")
    assert_same_model(open_clip.create_model(f"local-dir:{tmp_path}"), captioner.model)


def test_what_is_saved_loads_again(captioner, saved):
    again = load_captioner(str(saved))
    assert_same_model(again.model, captioner.model)
    assert again.name == "tiny_one"
    assert again.preprocess_cfg == captioner.preprocess_cfg
    assert again.weights_sha256 == state_sha256(captioner.model.state_dict())
    assert not again.model.training


def test_saved_files_are_these(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    config = json.loads((saved / "open_clip_config.json").read_text())
    assert config["capsmith"] == {"name": "tiny_one"}
    assert set(config) == {"model_cfg", "preprocess_cfg", "capsmith"}


def test_saving_over_itself_keeps_the_tokenizer(saved):
    again = load_captioner(str(saved))
    before = (saved / "tokenizer.json").read_bytes()
    again.save(saved, "tiny_two")
    assert (saved / "tokenizer.json").read_bytes() == before
    assert load_captioner(str(saved)).name == "tiny_two"


def test_a_save_that_fails_leaves_what_was_there(saved, monkeypatch):
    again = load_captioner(str(saved))

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("captioners.coca.captioner.save_file", full)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(OSError, match="no space left"):
        again.save(saved, "other")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("name", ["", "Tiny", "a-b", "emb", "my_embedder", "coco_captions", "a b"])
def test_a_name_that_names_no_column_is_refused(captioner, tmp_path, name):
    with pytest.raises(ValueError, match="must consist of a-z"):
        captioner.save(tmp_path / "saved", name)
    assert not (tmp_path / "saved").exists()


def test_half_precision_weights_are_loaded_in_full(captioner, tmp_path):
    captioner.save(tmp_path, "half", dtype="fp16")
    again = load_captioner(str(tmp_path))
    assert again.model.logit_scale.dtype == torch.float32
    assert load_file(tmp_path / "open_clip_model.safetensors")["logit_scale"].dtype == torch.float16
    half = {key: value.half() for key, value in captioner.model.state_dict().items()}
    assert again.weights_sha256 == state_sha256(half)


def test_dtype_is_of_the_model_and_not_of_the_hash(saved):
    full, half = load_captioner(str(saved)), load_captioner(str(saved), dtype="bf16")
    assert half.model.logit_scale.dtype == torch.bfloat16
    assert half.weights_sha256 == full.weights_sha256
    with pytest.raises(ValueError, match="dtype 'int8' is none of fp32, bf16, fp16"):
        load_captioner(str(saved), dtype="int8")


def test_the_hash_tells_weights_apart(captioner):
    state = captioner.model.state_dict()
    changed = {key: value.clone() for key, value in state.items()}
    changed["logit_scale"] += 1e-3
    assert state_sha256(state) == state_sha256(dict(reversed(state.items()))) != state_sha256(changed)


# The other layout, and the hub


def plain_layout(saved, folder, weights_name):
    """The layout of the released captioners: a model config in config.json, and one file of weights."""
    folder.mkdir()
    config = json.loads((saved / "open_clip_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["model_cfg"]))
    weights = load_file(saved / "open_clip_model.safetensors")
    if weights_name.endswith(".safetensors"):
        save_file(weights, folder / weights_name)
    else:
        state = {f"module.{key}": value for key, value in weights.items()}
        torch.save({"epoch": 3, "state_dict": state}, folder / weights_name)
    for path in saved.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("weights_name", ["model_77.pt", "whatever.safetensors", "open_clip_pytorch_model.bin"])
def test_the_released_captioners_layout_loads(captioner, saved, tmp_path, weights_name):
    again = load_captioner(str(plain_layout(saved, tmp_path / "released", weights_name)))
    assert_same_model(again.model, captioner.model)
    assert again.name == "released"
    assert "default of open_clip" in again.description


@pytest.mark.parametrize("context", [13, 27])
def test_the_context_is_read_from_the_config(make_captioner, tmp_path, context):
    other = make_captioner(text_cfg__context_length=context, multimodal_cfg__context_length=context)
    other.save(tmp_path / "saved", "other")
    again = load_captioner(str(plain_layout(tmp_path / "saved", tmp_path / "released", "model.pt")))
    assert again.context_length == context
    config = tmp_path / "released" / "config.json"
    assert f"context: {context} tokens + CLS (text_cfg and multimodal_cfg of {config})" in again.description


def test_hub_repositories_of_both_layouts_load_with_the_network_off(captioner, saved, tmp_path, fill_hub_cache):
    repositories = {"some/captioner": saved, "some/released": plain_layout(saved, tmp_path / "released", "model.pt")}
    for repository, folder in repositories.items():
        fill_hub_cache(tmp_path / "hub", repository, folder)
    code = (
        "import sys; from captioners.coca import load_captioner as load\n"
        "for n in sys.argv[1:]: print(load(n).weights_sha256)"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *repositories]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [state_sha256(captioner.model.state_dict())] * 2


# Weights that are missing or do not fit


def test_no_weights_is_an_error(saved):
    (saved / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        load_captioner(str(saved))
    with pytest.raises(ValueError, match="has no weights"):
        load_captioner("coca_ViT-B-32")


def test_weights_that_do_not_fit_are_all_listed(saved):
    path = saved / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["extra.one"] = weights.pop("text.ln_final.bias")
    weights["extra.two"] = weights.pop("logit_scale")
    weights["visual.conv1.weight"] = torch.zeros(2, 3)
    save_file(weights, path)
    with pytest.raises(ValueError) as caught:
        load_captioner(str(saved))
    for part in (
        str(path), "missing text.ln_final.bias", "missing logit_scale", "unexpected extra.one", "unexpected extra.two",
        "visual.conv1.weight is (2, 3), not (48, 3, 8, 8)",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_weights_that_are_integers_or_not_finite_are_named(saved):
    path = saved / "open_clip_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"text.ln_final.bias": weights["text.ln_final.bias"].to(torch.int16)}, path)
    with pytest.raises(ValueError, match=f"{path}: .*\n  text.ln_final.bias has dtype torch.int16, not torch.float32"):
        load_captioner(str(saved))
    save_file(weights | {"text.ln_final.bias": torch.full_like(weights["text.ln_final.bias"], torch.nan)}, path)
    with pytest.raises(ValueError, match=f"{path}: 1 of its weights hold numbers that are not finite: text.ln"):
        load_captioner(str(saved))


def test_many_weights_that_do_not_fit_are_summed_up_by_the_part_of_the_model(saved):
    path = saved / "open_clip_model.safetensors"
    weights = {name: weight for name, weight in load_file(path).items() if not name.startswith("text_decoder")}
    save_file(weights | {f"head.{number}": torch.zeros(1) for number in range(300)}, path)
    with pytest.raises(
        ValueError,
        match=r"\d+ of text_decoder\.\* are missing, such as: missing text_decoder.*\n"
        r"  300 of head\.\* are unexpected, such as: unexpected head\.0$",
    ):
        load_captioner(str(saved))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"_orig_mod.{name}": weight for name, weight in state.items()},
        lambda state: {
            "state_dict": {f"module._orig_mod.model.{name}": weight for name, weight in state.items()},
            "epoch": 3,
        },
        lambda state: {"model": {name: weight * 0 for name, weight in state.items()}, "state_dict_ema": state},
        lambda state: {name.replace("visual.", "visual._orig_mod."): weight for name, weight in state.items()},
        lambda state: state | {"logit_scale": state["logit_scale"].reshape(1)},
    ],
)
def test_what_trainers_put_round_weights_goes(saved, wrap):
    torch.save(wrap(load_file(saved / "open_clip_model.safetensors")), saved / "last.pt")
    assert load_captioner(str(saved / "last.pt")).weights_sha256 == load_captioner(str(saved)).weights_sha256


def test_a_weight_that_is_there_twice_is_told(saved):
    state = load_file(saved / "open_clip_model.safetensors")
    torch.save(state | {"module.logit_scale": state["logit_scale"]}, saved / "last.pt")
    with pytest.raises(ValueError, match="last.pt: holds logit_scale twice, as logit_scale and module.logit_scale"):
        load_captioner(str(saved / "last.pt"))


def test_another_image_size_is_open_clips_interpolation_where_it_is_asked_for(captioner, saved):
    larger = load_captioner(str(saved), image_size=48)
    model = open_clip.create_model(f"local-dir:{saved}", force_image_size=48, require_pretrained=True)
    assert torch.equal(larger.model.visual.positional_embedding, model.visual.positional_embedding)
    assert larger.preprocess(Image.effect_noise((50, 40), 60).convert("RGB")).shape == (3, 48, 48)
    weights = {"visual.positional_embedding": larger.model.visual.positional_embedding.data}
    save_file(load_file(saved / "open_clip_model.safetensors") | weights, saved / "open_clip_model.safetensors")
    with pytest.raises(
        ValueError,
        match="36 patches of a picture, but the config has 16: to fine-tune them, use --image-size 32",
    ):
        load_captioner(str(saved))
    assert load_captioner(str(saved), image_size=32).model.visual.positional_embedding.shape == (17, 48)
    with pytest.raises(ValueError, match="image size 30: is not a multiple of 8 pixels"):
        load_captioner(str(saved), image_size=30)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"embed_dim": "wide"}, "embed_dim is 'wide', but must be an integer of at least 1"),
        ({"vision_cfg": {"layers": 10**9}}, "vision_cfg.layers is 1000000000, at most 1,000 is allowed"),
        (
            {"text_cfg": {"width": 10**7, "heads": 1}, "multimodal_cfg": {"width": 10**7, "heads": 1}},
            "image tokens have width",
        ),
        ({"text_cfg": {"context_length": 10**6}}, "these weights do not fit the model|cannot build"),
        ({"vision_cfg": {"head_width": 0}}, "cannot build a CoCa"),
        ({"vision_cfg": {"theirs": 1}}, "cannot build a CoCa"),
        (
            {"text_cfg": {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}},
            "bpe_path is '/etc/passwd', which is outside the model's folder",
        ),
        ({"text_cfg": {"tokenizer_kwargs": {"bpe_path": "../../secret"}}}, "outside the model's folder"),
        ({"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}, "which is never done"),
    ],
)
def test_a_hostile_or_broken_config_is_told_before_anything_is_built(saved, change, message):
    path = saved / "open_clip_config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config["model_cfg"][key] = config["model_cfg"][key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_captioner(str(saved))


def test_no_message_passes_on_advice_to_let_code_run(saved):
    torch.save({"state_dict": Harmful()}, saved / "bad.pt")
    with pytest.raises(ValueError) as caught:
        load_captioner(str(saved / "bad.pt"))
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.parametrize("content", ["pickle", "garbage", "list", "empty"])
def test_files_that_are_no_weights_are_refused_and_run_nothing(saved, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = saved / "bad.pt"
    if content == "garbage":
        path.write_bytes(b"not weights")
    else:
        torch.save({"pickle": {"state_dict": Harmful()}, "list": [1, 2], "empty": {}}[content], path)
    with pytest.raises(ValueError, match="bad.pt: (not a file of weights|holds no named tensors)"):
        load_captioner(str(path))
    assert not (tmp_path / "harm").exists()


def test_a_broken_safetensors_file_is_named(saved):
    (saved / "open_clip_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="open_clip_model.safetensors: not a file of weights"):
        load_captioner(str(saved))


def test_a_config_open_clip_cannot_build_is_named(saved):
    path = saved / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["no_such_option"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="open_clip_config.json: open_clip cannot build.*no_such_option"):
        load_captioner(str(saved))


# From scratch


def test_from_scratch_every_weight_is_drawn_from_the_seed(saved, monkeypatch):
    def load(seed):
        torch.manual_seed(seed)
        return load_captioner(str(saved), from_scratch=True)

    empty = torch.empty
    first = load(0)
    # memory that torch.empty hands out is made recognisable: a weight that nobody fills shows
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    second = load(0)
    assert first.weights_sha256 == second.weights_sha256 != load(1).weights_sha256
    assert all(value.isfinite().all() for value in second.model.state_dict().values())
    assert first.weights_sha256 != load_captioner(str(saved)).weights_sha256
    assert "weights: random" in first.description


def test_from_scratch_contradicts_pretrained():
    with pytest.raises(ValueError, match="contradicts from_scratch"):
        load_captioner("coca_ViT-B-32", "laion2b_s13b_b90k", from_scratch=True)


# Preprocessing and description


@pytest.mark.parametrize("size", [(32, 32), (100, 40), (7, 90)])
@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest", "fill_color": 9},
    ],
    ids=str,
)
def test_preprocessing_is_open_clips(saved, size, preprocess):
    path = saved / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": preprocess}))
    captioner = load_captioner(str(saved))
    image = Image.effect_noise(size, 60).convert("RGB")
    expected = image_transform_v2(PreprocessCfg(size=(32, 32), **preprocess), is_train=False)(image)
    assert torch.equal(captioner.normalise(captioner.preprocess(image)), expected)
    assert captioner.preprocess(image).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "preprocess",
    [
        {"mode": "CMYK"},
        {"mean": ["a", "b", "c"]},
        {"mean": 3},
        {"mean": [[0.5], [0.5], [0.5]], "std": [[0.5], [0.5], [0.5]]},
        {"mean": [], "std": []},
        {"std": [0, 0, 0]},
        {"interpolation": ["a"]},
    ],
    ids=str,
)
def test_a_preprocessing_that_will_not_do_is_named(saved, preprocess):
    path = saved / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": preprocess}))
    with pytest.raises(ValueError, match=f"{path}: open_clip cannot prepare pictures with its preprocess_cfg: "):
        load_captioner(str(saved))


def test_the_description_says_what_comes_from_where(saved):
    lines = load_captioner(str(saved)).description.splitlines()
    config = saved / "open_clip_config.json"
    subjects = [line.split(":")[0] for line in lines]
    assert subjects == ["architecture", "context", "normalisation", "weights", "float32 products"]
    assert "tiny_one" in lines[0]
    assert all(str(config) in line for line in lines[:3])
    assert f"preprocess_cfg in {config}" in lines[2]
    assert str(saved / "open_clip_model.safetensors") in lines[3]


# Captioning

SAMPLING = SamplingConfig(num_captions=3, top_p=0.95)


def test_captions_come_in_input_order_with_all_that_belongs_to_them(captioner, pictures):
    captioned = list(captioner.caption(iter(pictures), SAMPLING))
    assert [result.key for result in captioned] == [request.key for request in pictures]
    for result, (_, picture, _) in zip(captioned, pictures, strict=True):
        assert len(result.captions) == 3
        assert len({caption.text for caption in result.captions}) == 3
        for caption in result.captions:
            assert caption.logprob < 0
            assert caption.similarity is None
            assert not any(special in caption.text for special in ("<pad>", "<start>", "<end>"))
        with torch.no_grad():
            torch.testing.assert_close(result.image_embedding, captioner.model.encode_image(picture[None])[0])


def texts(captioned):
    return {result.key: [caption.text for caption in result.captions] for result in captioned}


def test_the_same_keys_give_the_same_captions_in_any_company(captioner, pictures, monkeypatch):
    """In other batches the model's logits are rounded differently; these draws do not depend on it."""
    together = texts(captioner.caption(pictures, SAMPLING))
    for batch_size, order in ((1, [0, 1, 2, 3]), (3, [3, 1, 0, 2]), (2, [2, 0])):
        monkeypatch.setattr(captioner, "batch_size", batch_size)
        other = texts(captioner.caption([pictures[i] for i in order], SAMPLING))
        assert other == {pictures[i][0]: together[pictures[i][0]] for i in order}


def test_captions_depend_on_key_column_seed_and_index(captioner, pictures):
    (key, picture, _), *_ = pictures
    captions = texts(captioner.caption([Request(key, picture)], SAMPLING))[key]
    assert texts(captioner.caption([Request("other", picture)], SAMPLING))["other"] != captions
    assert texts(captioner.caption([Request(key, picture)], SAMPLING.model_copy(update={"seed": 1})))[key] != captions
    assert not {*texts(captioner.caption([Request(key, picture)], SAMPLING, column="syn_text_x"))[key]} & {*captions}
    later = SAMPLING.model_copy(update={"num_captions": 2})
    assert texts(captioner.caption([Request(key, picture)], later, first_index=1))[key] == captions[1:]


def test_captions_are_made_as_they_are_asked_for(captioner, pictures, monkeypatch):
    monkeypatch.setattr(captioner, "batch_size", 2)
    requested = []
    stream = captioner.caption(
        (requested.append(key) or Request(key, picture) for key, picture, _ in pictures), SAMPLING
    )
    next(stream)
    assert (
        len(requested) <= 3
    )  # the second's captions may have left, and the third picture joined, before the first's ended
    assert list(captioner.caption([], SAMPLING)) == []


def test_a_call_may_have_another_batch_size_than_the_captioner(captioner, pictures):
    requested = []
    next(
        captioner.caption(
            (requested.append(key) or Request(key, picture) for key, picture, _ in pictures), SAMPLING, batch_size=1
        )
    )
    assert len(requested) == 1 and captioner.batch_size == 16


def test_similarity_is_of_open_clips_own_features(captioner, pictures, monkeypatch):
    """Of captions that are too long for the text tower, the first tokens and the end token are embedded."""
    monkeypatch.setattr(captioner, "decode", lambda ids: " ".join(map(str, ids)))
    lengths = set()
    for max_length in (17, 9):
        sampling = SamplingConfig(num_captions=6, min_length=0, max_length=max_length)
        for result in captioner.caption(pictures, sampling, similarity=True):
            for caption in result.captions:
                ids = [int(token) for token in caption.text.split()]
                lengths.add(len(ids))
                ids = [*ids[:15], 2] if len(ids) > 16 else ids
                with torch.no_grad():
                    features = captioner.model.encode_text(torch.tensor([ids + [0] * (16 - len(ids))]))[0]
                assert caption.similarity == pytest.approx((features @ result.image_embedding).item(), abs=1e-5)
    assert {9, 17} <= lengths


def test_the_memory_of_a_picture_is_that_of_its_keys_and_values(captioner):
    """2 + 2 self-attention layers of 32 numbers for 15 tokens, per caption; 2 cross-attention layers for 7 tokens."""
    in_flight = 3 * 4 * 2 * 32 * 15 + 2 * 2 * 32 * 7
    assert captioner.bytes_per_picture(SAMPLING) == 2 * 4 * in_flight + 8 * 4 * 3 * 300
    beams = SamplingConfig(strategy="beam", num_captions=1, num_beams=6, max_length=9)
    assert captioner.bytes_per_picture(beams) == 2 * 4 * (6 * 4 * 2 * 32 * 7 + 2 * 2 * 32 * 7) + 8 * 4 * 6 * 300


def test_a_prompt_is_continued(captioner, pictures):
    sampling = SAMPLING.model_copy(update={"prefix": "a red"})
    for result in captioner.caption(pictures, sampling):
        assert all(caption.text.startswith("a red") for caption in result.captions)
        assert len({caption.text for caption in result.captions}) > 1


def test_the_models_mode_is_left_as_it_was(captioner, pictures):
    captioner.model.train()
    next(iter(captioner.caption(pictures, SAMPLING)))
    assert captioner.model.training
    captioner.model.eval()


def test_sampling_that_does_not_fit_is_refused_at_once(captioner):
    sampling = SamplingConfig(max_length=30, min_length=20, prefix="red circle " * 20)
    with pytest.raises(ValueError) as caught:
        captioner.caption([], sampling)
    assert "max_length 30 exceeds 17" in str(caught.value)
    assert "no room for a caption" in str(caught.value)


def test_beams_are_at_least_as_probable_as_the_greedy_caption(captioner, pictures):
    beam = SamplingConfig(strategy="beam", num_captions=3, num_beams=6, length_penalty=0.0)
    greedy = {
        result.key: result.captions[0] for result in captioner.caption(pictures, SamplingConfig(strategy="greedy"))
    }
    captioned = list(captioner.caption(pictures, beam))
    assert [result.key for result in captioned] == [request.key for request in pictures]
    for result in captioned:
        logprobs = [caption.logprob for caption in result.captions]
        assert logprobs == sorted(logprobs, reverse=True) and len(set(logprobs)) == 3
        assert logprobs[0] >= greedy[result.key].logprob - 1e-4
