"""Answers ranked anew by children and parents: which are unsure, by a slow reference; hierarchies of files and of WordNet."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import capsmith
from finetune.zero_shot import hierarchy as module
from finetune.zero_shot.compare import unsure_of
from finetune.zero_shot.hierarchy import Hierarchy, Reranker, read_hierarchy
from finetune.zero_shot.pictures import Classes
from imagetext.sources import read_records

NAMES = ["star", "heart", "cross", "circle", "square", "moon"]
TEMPLATES = ["a {}", "the {}", "one {}", "drawn {}", "{}!"]
FAMILIES = Hierarchy(["", "organ", "sign", "round", "", ""], [["red star", "sun"], [], ["plus"], [], [], ["crescent"]])


def embed(texts):
    """A vector of length 1 of each text, the sum of those of its words, of which names count most."""

    def of(word):
        random = torch.Generator().manual_seed(sum(ord(letter) ** 2 for letter in word))
        return (2 if word.strip("!") in NAMES else 1) * torch.randn(4, generator=random)

    return F.normalize(torch.stack([sum(map(of, text.split())) for text in texts]), dim=1)


def slowly(picture, first):
    """Whether the model is unsure of a picture, and the better class, as the paper has it."""

    def nearest(templates):
        classes = [F.normalize(embed([t.replace("{}", name) for t in templates]).mean(0), dim=0) for name in NAMES]
        return [float(picture @ of) for of in classes]

    def best(scores):
        return max(range(len(scores)), key=scores.__getitem__)

    bare = nearest(["{}"])
    if {first} == {best(bare), best(nearest(TEMPLATES[:3])), best(nearest(TEMPLATES[3:]))}:
        return False, first
    candidates = sorted(range(len(NAMES)), key=lambda one: -bare[one])[:5]
    scores = {}
    for one in candidates:
        parent = FAMILIES.parents[one]
        texts = [
            f"{text} which is a kind of {parent}" if parent else text for text in (NAMES[one], *FAMILIES.children[one])
        ]
        scores[one] = max(float(picture @ vector) for vector in embed(texts))
    return True, max(scores, key=scores.__getitem__)


def test_unsure_pictures_are_ranked_anew_as_one_by_one():
    pictures = F.normalize(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    classes = torch.stack(
        [F.normalize(embed([t.replace("{}", name) for t in TEMPLATES]).mean(0), dim=0) for name in NAMES]
    )
    first = (pictures @ classes.T).argmax(dim=1)
    unsure, best = Reranker(embed, NAMES, TEMPLATES, FAMILIES)(pictures, first)
    slow = [slowly(picture, one) for picture, one in zip(pictures, first.tolist())]
    assert list(zip(unsure.tolist(), best.tolist())) == slow
    assert 0 < unsure.sum() < 60 and (best != first).any()


def test_what_it_gains_is_counted_where_the_model_is_unsure():
    labels = np.array([0, 0, 1, 1, 1, 0])
    first = np.array([1.0, 0, 0, 1, 1, 1])
    unsure = np.array([False, True, True, True, False, False])
    found = unsure_of(first, unsure, np.array([0, 0, 1, 0, 1, 0]), labels, seed=0)
    assert [found.share.mean, found.sure.mean] == [0.5, 1]
    assert [found.before.mean, found.after.mean, found.gain.mean, found.total.mean] == pytest.approx(
        [1 / 3, 2 / 3, 1 / 3, 5 / 6]
    )
    assert unsure_of(first, np.zeros(6, bool), labels, labels, seed=0).gain is None


def test_a_file_of_edges_knows_classes_by_label_or_name(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_text("n1\tshape\nn1\tsecond\nred star\tstar\n\nsun\tstar\nother\tthing\n")
    find = read_hierarchy(str(path))
    assert find(Classes(["n1", "n2"], ["star", "heart"], [1, 1])) == Hierarchy(
        ("shape", ""), (["red star", "sun"], [])
    )
    with pytest.raises(ValueError, match="knows none of the 2 classes, which begin with 'cat', 'dog'"):
        find(Classes(["a", "b"], ["cat", "dog"], [1, 1]))
    path.write_text("star\tshape\nheart shape\n")
    with pytest.raises(ValueError, match="'heart shape' is no CHILD<tab>PARENT"):
        read_hierarchy(str(path))
    with pytest.raises(ValueError, match="is not wordnet, and no file that can be read"):
        read_hierarchy(str(tmp_path / "none"))


def synset(*names, parents=(), children=()):
    return SimpleNamespace(lemma_names=lambda: list(names), hypernyms=lambda: parents, hyponyms=lambda: children)


def test_wordnet_is_asked_by_id_or_by_the_commonest_noun(monkeypatch):
    shark = synset("great_white_shark", "white_shark", parents=(synset("mackerel_shark"), synset("fish")))
    bird = synset("crane", parents=(synset("wading_bird"),), children=(synset("whooping_crane", "whooper"),))
    wordnet = SimpleNamespace(
        synset_from_pos_and_offset=lambda part, offset: {("n", 1484850): shark}[part, offset],
        synsets=lambda name, part: {("red_crane", "n"): [bird, synset("lift")]}.get((name, part), []),
    )
    monkeypatch.setattr(module, "load_wordnet", lambda: wordnet)
    found = read_hierarchy("wordnet")(Classes(["n01484850", "3", "4"], ["shark", "red crane", "qwerty"], [1, 1, 1]))
    assert found == Hierarchy(("mackerel shark", "wading bird", ""), ([], ["whooping crane"], []))
    monkeypatch.setattr(module, "load_wordnet", lambda: None)
    with pytest.raises(ValueError, match="nltk's corpus is not on this machine; `python -m nltk.downloader wordnet`"):
        read_hierarchy("wordnet")


def test_the_command_says_what_the_hierarchy_does(tmp_path, capsys):
    for record in read_records("scenes:test,n=30,level=3"):
        path = tmp_path / "set" / record.meta["scene"]["objects"][0]["shape"] / f"{record.key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.image)
    (tmp_path / "edges").write_text("star\tshape\nsun\tstar\n")
    (tmp_path / "templates").write_text("a photo of a {}.\nblue {}\nred {}\n")
    flags = [
        "zero-shot",
        "--model",
        "coca_tiny",
        "--input",
        str(tmp_path / "set"),
        "--hierarchy",
        str(tmp_path / "edges"),
    ]
    assert capsmith.main([*flags, "--templates", "name", "--output", str(tmp_path / "out")]) == 2
    assert "--templates name is a single one" in capsys.readouterr().err
    assert capsmith.main([*flags, "--templates", str(tmp_path / "templates"), "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    unsure = report["models"]["coca_tiny"]["unsure"]
    assert 0 < unsure["share"]["mean"] < 1 and unsure["gain"]["mean"] == pytest.approx(
        unsure["after"]["mean"] - unsure["before"]["mean"]
    )
    assert "knows 1 of 6 classes" in report["notes"][0] and "coca_tiny is unsure of " in report["answer"][-1]
    assert "Unsure pictures" in (tmp_path / "out" / "zero_shot.html").read_text()
