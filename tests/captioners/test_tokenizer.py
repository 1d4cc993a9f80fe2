import copy
import json
import shutil

import open_clip
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer

from captioners.coca.tokenizer import CaptionTokenizer, PlainTokenizer
from captioners.load import load_captioner
from captioners.resolve import SHIPPED

CLIP_CFG = {"text_cfg": {"vocab_size": 49408}}
TEXTS = ["A dog runs.", "what!? 1990's 'n' cafés", "two  blanks\tand\nlines", "狗 🐕 <b>&amp;amp;</b>", "", "!!!a"]


@pytest.fixture(scope="module")
def clip():
    return CaptionTokenizer(CLIP_CFG, None)


@pytest.fixture(scope="module")
def from_folder(captioner):
    return captioner.tokenizer


@pytest.fixture(scope="module")
def shipped():
    """The tokenizer of coca_tiny, which is read without transformers."""
    folder = SHIPPED / "coca_tiny"
    return CaptionTokenizer(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"], folder)


@pytest.fixture(scope="module")
def of_transformers():
    """open_clip's tokenizer of coca_tiny's folder, which transformers reads."""
    return HFTokenizer(str(SHIPPED / "coca_tiny"), clean="lower", local_files_only=True)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["clip", "from_folder", "shipped"])
def test_ids_are_open_clips(which, text, request):
    tokenizer = request.getfixturevalue(which)
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.start_id
    assert ids[-1] == tokenizer.end_id
    open_clips = request.getfixturevalue("of_transformers") if which == "shipped" else tokenizer._tokenizer
    theirs = open_clips(text, context_length=100)[0].tolist()
    assert ids + [tokenizer.pad_id] * (100 - len(ids)) == theirs


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.lists(st.integers(0, 1023), max_size=20))
@settings(max_examples=300, deadline=None)
def test_a_plain_tokenizer_is_that_of_transformers(shipped, of_transformers, text, ids):
    inner, theirs = shipped._hf_tokenizer, of_transformers.tokenizer
    assert isinstance(inner, PlainTokenizer)
    cleaned = of_transformers.clean_fn(text)
    assert shipped._tokenizer.clean_fn(text) == cleaned
    assert inner(cleaned).input_ids == theirs(cleaned, truncation=False, verbose=False).input_ids
    assert inner.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_the_facts_of_a_plain_tokenizer_are_those_of_transformers(shipped, of_transformers):
    inner, theirs = shipped._hf_tokenizer, of_transformers.tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(inner, name) == getattr(theirs, name)
    assert (len(inner), set(inner.all_special_ids)) == (len(theirs), set(theirs.all_special_ids))


@pytest.mark.parametrize(
    "change",
    [{"tokenizer_class": "TokenizersBackend"}, {"add_prefix_space": False}, {"mask_token": "<mask>"}, {"extra": 1}],
)
def test_other_tokenizers_are_read_by_transformers(tmp_path, change):
    config = SHIPPED / "coca_tiny" / "tokenizer_config.json"
    shutil.copy(config.with_name("tokenizer.json"), tmp_path)
    (tmp_path / config.name).write_text(json.dumps(json.loads(config.read_text()) | change))
    text_cfg = {"hf_tokenizer_name": "any", "vocab_size": 1025}
    tokenizer = CaptionTokenizer({"text_cfg": text_cfg}, tmp_path)
    assert isinstance(tokenizer._tokenizer, HFTokenizer)


def test_long_texts_are_not_cut(clip, from_folder):
    for tokenizer in (clip, from_folder):
        assert len(tokenizer.encode("red " * 300)) >= 302


def test_special_ids_are_the_tokenizers(clip, from_folder):
    assert (clip.start_id, clip.end_id, clip.pad_id) == (49406, 49407, 0)
    assert (from_folder.start_id, from_folder.end_id, from_folder.pad_id) == (1, 2, 0)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=300, deadline=None)
def test_own_tokenizer_gives_back_the_cleaned_text(from_folder, text):
    assume(not any(special in text for special in ("<pad>", "<start>", "<end>")))
    assert from_folder.decode(from_folder.encode(text)) == from_folder._tokenizer.clean_fn(text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=300, deadline=None)
def test_clips_tokenizer_gives_back_the_cleaned_text_but_for_blanks(clip, text):
    assume(not any(special in text.lower() for special in ("<start_of_text>", "<end_of_text>")))
    # the pattern, too, cleans: it finds no token in a few combining characters
    cleaned = "".join(clip._tokenizer.pat.findall(clip._tokenizer.clean_fn(text)))
    assert "".join(clip.decode(clip.encode(text)).split()) == cleaned


def test_the_name_of_a_special_token_is_that_token_as_it_is_to_open_clip(clip, from_folder):
    for tokenizer, name in ((clip, "<end_of_text>"), (from_folder, "<end>")):
        assert tokenizer.encode(f"red{name}") == [*tokenizer.encode("red"), tokenizer.end_id]
        assert tokenizer.decode(tokenizer.encode(f"red{name}blue")) == "red"


def test_decode_is_open_clips_on_a_caption(clip):
    ids = clip.encode("A dog's run, 1990!")
    theirs = open_clip.decode(open_clip.tokenize("A dog's run, 1990!")[0])
    assert clip.decode(ids) == theirs.split("<end_of_text>")[0].replace("<start_of_text>", "").strip()


def test_decode_stops_at_the_first_end_and_drops_special_tokens(clip, from_folder):
    for tokenizer in (clip, from_folder):
        red, blue = (tokenizer.encode(word)[1:-1] for word in ("red", "blue"))
        ids = [tokenizer.start_id, tokenizer.start_id, *red, tokenizer.end_id, *blue, tokenizer.end_id]
        assert tokenizer.decode(ids) == "red"
        assert tokenizer.decode([]) == tokenizer.decode([tokenizer.start_id, tokenizer.end_id]) == ""


def test_clips_pad_token_within_a_word_is_kept(clip):
    ids = clip.encode("!~→")
    assert clip.pad_id in ids
    assert clip.decode(ids) == "!~→"


def test_never_ids_are_special_tokens_and_what_is_no_token(clip, from_folder):
    assert clip.banned_ids(49408) == [0, 49406]
    assert from_folder.banned_ids(293) == [0, 1, 290, 291, 292]


def test_a_config_that_does_not_fit_names_everything(from_folder, tiny_config):
    config = copy.deepcopy(tiny_config)
    config["text_cfg"] |= {"vocab_size": 200, "pad_id": 5}
    with pytest.raises(ValueError, match="its pad id is 0, but text_cfg.pad_id is 5; it has 290 tokens, .* is 200"):
        CaptionTokenizer(config, from_folder.folder)


def test_a_tokenizer_without_special_tokens_is_refused(tokenizer_files, tiny_config, tmp_path):
    tokenizer_files(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("_token")}))
    with pytest.raises(ValueError, match="no start token; it has no end token; it has no pad token"):
        CaptionTokenizer(tiny_config, tmp_path)


def test_a_tokenizer_that_does_not_frame_a_text_is_refused(tokenizer_files, tiny_config, tmp_path):
    tokenizer_files(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    with pytest.raises(ValueError, match="does not put the start and end tokens around a text"):
        CaptionTokenizer(tiny_config, tmp_path)


def test_missing_tokenizer_files_are_an_error(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="contains no files of a tokenizer"):
        CaptionTokenizer(tiny_config, tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0", "model": "\\u001b[2J"}', "\x00"])
def test_a_broken_tokenizer_is_one_line(tokenizer_files, tiny_config, tmp_path, content):
    tokenizer_files(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer cannot be read: ") as caught:
        CaptionTokenizer(tiny_config, tmp_path)
    assert str(caught.value).isprintable()


def test_unknown_options_of_clips_tokenizer_are_named():
    with pytest.raises(ValueError, match="CLIP's tokenizer cannot be made: .*'wrong'"):
        CaptionTokenizer({"text_cfg": {"tokenizer_kwargs": {"wrong": 1}}}, None)


def test_a_tokenizers_own_code_is_never_run(tokenizer_files, tiny_config, tmp_path):
    tokenizer_files(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "tokenizer_class"}))
    try:
        CaptionTokenizer(tiny_config, tmp_path)
    except ValueError:
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("token", [[], {}, [["x"]]])
def test_a_token_that_is_no_text_is_told_in_a_sentence(tmp_path, token):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "coca_tiny", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": token}))
    with pytest.raises(ValueError, match="tokenizer"):
        load_captioner(str(folder))
