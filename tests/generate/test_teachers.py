"""Teachers against open_clip itself, one view and one text at a time."""

import copy
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as pixels_of

from captioners.load import load_captioner
from generate.reinforce.teachers import load_teacher, load_teachers

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
TEXTS = ["a red circle", "", "two green stars on a dotted background, and more words than the context's twelve tokens"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny CLIP of random weights: `clip(seed, image_size=32, **model_cfg)`."""

    def make(seed: int = 0, image_size: int = 32, **changes) -> str:
        folder = tmp_path_factory.mktemp("clip")
        config = copy.deepcopy(TINY) | changes
        config["vision_cfg"]["image_size"] = image_size
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        return str(folder)

    return make


@pytest.fixture
def views():
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def one_by_one(folder, views, texts, size=32):
    """Return normalised embeddings by open_clip's own forward, in batches of one."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    of_views, of_texts = [], []
    with torch.no_grad():
        for view in views:
            picture = pixels_of.normalize(pixels_of.to_tensor(view.permute(1, 2, 0).numpy()), **PREPROCESS)[None]
            of_views.append(
                model(image=F.interpolate(picture, size, mode="bicubic") if size != view.shape[-1] else picture)[0]
            )
        for text in texts:
            of_texts.append(model(text=tokenizer([text]))[1])
    return torch.cat(of_views), torch.cat(of_texts)


def test_embeddings_are_open_clips_own(clip, views):
    folder = clip()
    teacher = load_teacher(folder)
    of_views, of_texts = teacher.embed(views, TEXTS, batch_size=2)
    expected = one_by_one(folder, views, TEXTS)
    torch.testing.assert_close((of_views, of_texts), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(of_views.norm(dim=1), torch.ones(5))
    assert of_views.dtype == torch.float32 and teacher.dimension == 24 and teacher.size == (32, 32)
    assert (of_views[0] - of_views[1]).abs().max() > 1e-3 and (of_texts[0] - of_texts[1]).abs().max() > 1e-3


def test_a_smaller_teacher_sees_the_views_resized(clip, views):
    folder = clip(image_size=16)
    expected = one_by_one(folder, views, TEXTS, size=16)
    torch.testing.assert_close(load_teacher(folder).embed(views, TEXTS, 8), expected, atol=1e-6, rtol=1e-5)


def test_a_captioner_is_a_teacher(tmp_path, views):
    teacher, captioner = load_teacher("coca_tiny"), load_captioner("coca_tiny")
    of_views, of_texts = teacher.embed(views, ["a red circle", "a blue square"], 4)
    pictures = torch.stack(
        [
            pixels_of.normalize(view / 255, captioner.preprocess_cfg["mean"], captioner.preprocess_cfg["std"])
            for view in views
        ]
    )
    with torch.no_grad():
        expected = captioner.model.encode_image(F.interpolate(pictures, teacher.size, mode="bicubic"))
        ids = [captioner.encode_text_ids(text) for text in ("a red circle", "a blue square")]
        tokens = torch.tensor(
            [token_ids + [captioner.pad_id] * (captioner.context_length - len(token_ids)) for token_ids in ids]
        )
        torch.testing.assert_close(of_texts, captioner.model.encode_text(tokens), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_views, expected, atol=1e-5, rtol=1e-4)
    assert teacher.weights_sha256 == captioner.weights_sha256
    assert teacher.logit_scale == pytest.approx(captioner.model.logit_scale.exp().item())


def test_an_architecture_takes_its_weights_from_a_file(clip, views, tmp_path, monkeypatch):
    folder = clip(seed=3)
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {"tiny-clip": TINY})
    teacher = load_teacher(f"tiny-clip:{folder}/open_clip_pytorch_model.bin")
    assert (
        teacher.mean == open_clip.OPENAI_DATASET_MEAN and teacher.weights_sha256 == load_teacher(folder).weights_sha256
    )
    with pytest.raises(ValueError, match="which weights.*tiny-clip:FILE"):
        load_teacher("tiny-clip")
    with pytest.raises(ValueError, match="teacher tiny-clip:nowhere"):
        load_teacher("tiny-clip:nowhere")


def test_scales_are_of_the_stored_weights_whatever_the_dtype(clip, views):
    folder = clip(init_logit_scale=4.6052, init_logit_bias=-10)
    fp32, bf16 = load_teacher(folder), load_teacher(folder, dtype="bf16")
    assert fp32.describe() == bf16.describe()
    assert bf16.logit_scale == pytest.approx(100, rel=1e-4) and bf16.logit_bias == -10
    of_views, of_texts = bf16.embed(views, TEXTS, 2)
    expected = fp32.embed(views, TEXTS, 2)
    assert not torch.equal(of_views, expected[0])
    torch.testing.assert_close((of_views, of_texts), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(of_views.norm(dim=1), torch.ones(5))


def test_teachers_in_turn_give_the_same_and_leave_the_device(clip, views, monkeypatch):
    names, moves = [clip(), clip(seed=1)], []
    together = load_teachers(names, "cpu", "fp32")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 1000))
    assert not any(teacher.in_turn for teacher in together)
    in_turn = load_teachers(names, "cuda:0", "fp32")
    assert all(teacher.in_turn for teacher in in_turn)
    assert not load_teachers(names[:1], "cuda:0", "fp32")[0].in_turn
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10**9, 10**9))
    assert not any(teacher.in_turn for teacher in load_teachers(names, "cuda:0", "fp32"))
    for first, second in zip(together, in_turn):
        object.__setattr__(second, "device", "cpu")
        monkeypatch.setattr(second.model, "to", lambda device, second=second: moves.append((second.name, device)))
        assert all(map(torch.equal, first.embed(views, TEXTS, 2), second.embed(views, TEXTS, 2)))
    assert moves == [(name, "cpu") for name in names for _ in range(2)]


def test_embeddings_that_are_no_numbers_are_an_error(clip, views):
    teacher = load_teacher(clip())
    with torch.no_grad():
        teacher.model.visual.proj.fill_(torch.nan)
    with pytest.raises(ValueError, match=f"teacher {teacher.name}: .*finite.*float32"):
        teacher.embed(views, [], 2)


def test_every_teacher_that_cannot_be_had_is_named(clip, tmp_path):
    """A folder without weights, one whose config asks to run code, one with other files, and a missing folder."""
    weightless, greedy = tmp_path / "weightless", tmp_path / "greedy"
    for folder, options in ((weightless, {}), (greedy, {"tokenizer_kwargs": {"trust_remote_code": True}})):
        folder.mkdir()
        config = TINY | {"text_cfg": TINY["text_cfg"] | options}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ValueError) as error:
        load_teachers([str(weightless), clip(), str(greedy), str(tmp_path), "no teacher", "coca_small"], "cpu", "fp32")
    message = str(error.value)
    for expected in (
        f"{weightless}: open_clip cannot load it",
        f"{greedy}: open_clip_config.json: its tokenizer_kwargs ask for code",
        f"{tmp_path}: no open_clip_config.json",
        "no teacher: no ARCHITECTURE:TAG of open_clip",
        "coca_small: open_clip cannot",
    ):
        assert expected in message
    assert len(message.splitlines()) >= 5


def test_texts_whose_attention_sees_ahead_are_not_cut(clip):
    folder = clip(text_cfg=TINY["text_cfg"] | {"no_causal_mask": True})
    _, of_texts = load_teacher(folder).embed(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), TEXTS[:2], 2)
    expected = one_by_one(folder, [torch.zeros(3, 32, 32, dtype=torch.uint8)], TEXTS[:2])[1]
    torch.testing.assert_close(of_texts, expected, atol=1e-6, rtol=1e-5)
