"""Reranking by children and parents against a slow reference; hierarchies from files and from WordNet."""

import json
import warnings

import nltk
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

import capsmith
from diversity.measures.references import load_wordnet
from finetune.zero_shot import hierarchy as module
from finetune.zero_shot.compare import unsure_of
from finetune.zero_shot.hierarchy import Hierarchy, Reranker, read_hierarchy
from finetune.zero_shot.pictures import Classes
from imagetext.sources import read_records

NAMES = ["star", "heart", "cross", "circle", "square", "moon"]
TEMPLATES = ["a {}", "the {}", "one {}", "drawn {}", "{}!"]
FAMILIES = Hierarchy(["", "organ", "sign", "round", "", ""], [["red star", "sun"], [], ["plus"], [], [], ["crescent"]])


def embed(texts):
    """Return a unit vector for each text: the sum of the vectors of its words, in which class names weigh most."""

    def of(word):
        random = torch.Generator().manual_seed(sum(ord(letter) ** 2 for letter in word))
        return (2 if word.strip("!") in NAMES else 1) * torch.randn(4, generator=random)

    return F.normalize(torch.stack([sum(map(of, text.split())) for text in texts]), dim=1)


def slowly(picture, first):
    """Return whether the model is unsure of a picture, and the better class, as in the paper."""

    def nearest(templates):
        classes = [F.normalize(embed([t.replace("{}", name) for t in templates]).mean(0), dim=0) for name in NAMES]
        return [float(picture @ feature) for feature in classes]

    def best(scores):
        return max(range(len(scores)), key=scores.__getitem__)

    bare = nearest(["{}"])
    if {first} == {best(bare), best(nearest(TEMPLATES[:3])), best(nearest(TEMPLATES[3:]))}:
        return False, first
    candidates = sorted(range(len(NAMES)), key=lambda index: -bare[index])[:5]
    scores = {}
    for index in candidates:
        parent = FAMILIES.parents[index]
        texts = [
            f"{text} which is a kind of {parent}" if parent else text
            for text in (NAMES[index], *FAMILIES.children[index])
        ]
        scores[index] = max(float(picture @ vector) for vector in embed(texts))
    return True, max(scores, key=scores.__getitem__)


def test_unsure_pictures_are_ranked_anew_as_one_by_one():
    pictures = F.normalize(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    classes = torch.stack(
        [F.normalize(embed([t.replace("{}", name) for t in TEMPLATES]).mean(0), dim=0) for name in NAMES]
    )
    first = (pictures @ classes.T).argmax(dim=1)
    unsure, agreement, ranked = Reranker(embed, NAMES, TEMPLATES, hierarchy=FAMILIES)(pictures, first)
    best = torch.where(unsure, ranked[:, 0], first)
    assert {len(set(row)) for row in ranked.tolist()} == {5}
    alone = torch.stack(
        [(pictures @ embed([item.replace("{}", name) for name in NAMES]).T).argmax(dim=1) for item in TEMPLATES]
    )
    assert agreement.tolist() == [
        sum(item == right for item in column) / 5 for column, right in zip(alone.T.tolist(), first.tolist())
    ]
    slow = [slowly(picture, item) for picture, item in zip(pictures, first.tolist())]
    assert list(zip(unsure.tolist(), best.tolist())) == slow
    assert 0 < unsure.sum() < 60 and (best != first).any()


def test_what_it_gains_is_counted_where_the_model_is_unsure():
    labels = np.array([0, 0, 1, 1, 1, 0])
    first = np.array([1.0, 0, 0, 1, 1, 1])
    unsure = np.array([False, True, True, True, False, False])
    unsure_result = unsure_of(first, unsure, np.array([0, 0, 1, 0, 1, 0]), labels=labels, seed=0)
    assert [unsure_result.share.mean, unsure_result.sure.mean] == [0.5, 1]
    assert [
        unsure_result.before.mean,
        unsure_result.after.mean,
        unsure_result.gain.mean,
        unsure_result.total.mean,
    ] == pytest.approx([1 / 3, 2 / 3, 1 / 3, 5 / 6])
    assert unsure_of(first, np.zeros(6, bool), labels, labels=labels, seed=0).gain is None


def find_in(path, labels, names):
    return read_hierarchy(str(path))(Classes(labels, names, [1] * len(names)))


def test_a_file_of_edges_knows_classes_by_label_or_name(tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_text("n1\tshape\nn1\tsecond\nred star\tstar\n\nsun\tstar\nother\tthing\n")
    find = read_hierarchy(str(path))
    assert find(Classes(["n1", "n2"], ["star", "heart"], [1, 1])) == Hierarchy(
        ("shape", ""), (["red star", "sun"], [])
    )
    with pytest.raises(ValueError, match="knows none of the 2 classes, which begin with 'cat', 'dog'"):
        find(Classes(["a", "b"], ["cat", "dog"], [1, 1]))
    path.write_text("b\ta\nc\ta\nc\td\n\u00e9\tb\n")
    assert find_in(path, ["a", "b", "c"], ["shape", "star", "heart"]) == Hierarchy(
        ("", "shape", "shape"), ([], ["\u00e9"], [])
    )
    path.write_text("star\tshape\nheart shape\n")
    with pytest.raises(ValueError, match="'heart shape' is not CHILD<tab>PARENT"):
        read_hierarchy(str(path))
    with pytest.raises(ValueError, match="is neither wordnet nor a readable file"):
        read_hierarchy(str(tmp_path / "none"))


# Synsets of WordNet 3.0: lexicographer file, words, parents, classes it is an instance of, count of its first word.
SYNSETS = {
    "entity": (3, ["entity"], [], [], 0),
    "fish": (5, ["fish"], ["entity"], [], 0),
    "mackerel shark": (5, ["mackerel_shark"], ["fish"], [], 0),
    "shark": (5, ["great_white_shark", "white_shark"], ["fish", "mackerel shark"], [], 0),
    "writer": (18, ["writer"], ["entity"], [], 0),
    "Crane": (18, ["Crane", "Stephen_Crane"], [], ["writer"], 0),
    "lifting device": (6, ["lifting_device"], ["entity"], [], 0),
    "machine": (6, ["crane"], ["lifting device"], [], 0),
    "wading bird": (5, ["wading_bird"], ["entity"], [], 0),
    "bird": (5, ["crane"], ["wading bird"], [], 0),
    "whooper": (5, ["whooping_crane", "whooper"], ["bird"], [], 0),
    "demoiselle": (5, ["demoiselle"], ["bird"], [], 0),
    "dog": (5, ["dog", "domestic_dog"], ["entity"], [], 42),
    "puppy": (5, ["puppy"], ["dog"], [], 0),
    "andiron": (6, ["andiron", "dog"], ["lifting device"], [], 0),
    "andiron's kind": (6, ["fire_dog"], ["andiron"], [], 0),
}


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """Return nltk's reader of files in WordNet's format, in which a synset's id is the offset of its line."""
    folder = tmp_path_factory.mktemp("nltk_data") / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    licence = "  1 WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.  \n"
    places = dict.fromkeys(SYNSETS, 0)

    def line(key):
        lexname, synonyms, parents, instances, _ = SYNSETS[key]
        pointers = [("@", parent) for parent in parents] + [("@i", one) for one in instances]
        for other, (_, _, above, instance_of, _) in SYNSETS.items():
            pointers += [("~", other)] * (key in above) + [("~i", other)] * (key in instance_of)
        words = "".join(f"{one} 0 " for one in synonyms)
        to = "".join(f"{sign} {places[other]:08d} n 0000 " for sign, other in pointers)
        return f"{places[key]:08d} {lexname:02d} n {len(synonyms):02x} {words}{len(pointers):03d} {to}| it  \n"

    offset = len(licence)
    for key in SYNSETS:
        places[key] = offset
        offset += len(line(key))  # an offset always has eight digits, so the length is known
    (folder / "data.noun").write_text(licence + "".join(map(line, SYNSETS)))
    entries = {}
    for key, (_, synonyms, *_) in SYNSETS.items():
        for one in synonyms:
            entries.setdefault(one.lower(), []).append(f"{places[key]:08d}")
    (folder / "index.noun").write_text(
        licence
        + "".join(
            f"{one} n {len(instances)} 1 @ {len(instances)} 0 {' '.join(instances)}  \n"
            for one, instances in sorted(entries.items())
        )
    )
    met = [
        f"{instances[1][0].lower()}%1:{instances[0]:02d}:00:: 1 {instances[4]}\n"
        for instances in SYNSETS.values()
        if instances[4]
    ]
    (folder / "cntlist.rev").write_text("".join(sorted(met)))
    kinds = (
        "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact" + " noun.other" * 11 + " noun.person"
    )
    (folder / "lexnames").write_text(
        "".join(f"{offset:02d}\t{kind}\t1\n" for offset, kind in enumerate(kinds.split()))
    )
    for part in ("adj", "adv", "verb"):
        for kind in ("data", "index"):
            (folder / f"{kind}.{part}").write_text(licence)
    for name in ("adj.exc", "adv.exc", "noun.exc", "verb.exc", "index.sense"):
        (folder / name).write_text("")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setattr(nltk.data, "path", [str(folder.parents[1])])
        yield WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None), places


def in_wordnet(monkeypatch, wordnet, labels, names):
    monkeypatch.setattr(module, "load_wordnet", lambda: wordnet)
    return read_hierarchy("wordnet")(Classes(labels, names, [1] * len(names)))


def test_wordnet_is_asked_by_id_or_by_name(monkeypatch, wordnet):
    reader, places = wordnet
    labels = [f"n{places['shark']:08d}", "3", "n99999999", "5", "n00000003"]
    families = in_wordnet(monkeypatch, reader, labels, ["shark", "Great White shark", "fish", "qwerty", "asdf"])
    assert families == Hierarchy(
        ("mackerel shark", "mackerel shark", "entity", "", ""), ([], [], ["mackerel shark"], [], [])
    )
    monkeypatch.setattr(module, "load_wordnet", lambda: None)
    with pytest.raises(ValueError, match="nltk's corpus is not on this machine; `python -m nltk.downloader wordnet`"):
        read_hierarchy("wordnet")


@pytest.mark.parametrize(
    "others,parent,children",
    [
        (["fish", "whooper"], "wading bird", ["demoiselle"]),  # a class is not a child of another class
        (["lifting device"], "lifting device", []),
        (
            ["Stephen Crane", "dog", "fish"],
            "wading bird",
            ["demoiselle", "whooping crane"],
        ),  # no class is a single person
    ],
)
def test_a_name_of_several_nouns_is_of_the_kind_that_most_classes_are_of(
    monkeypatch, wordnet, others, parent, children
):
    names = ["crane", *others]
    families = in_wordnet(monkeypatch, wordnet[0], names, names)
    assert (families.parents[0], families.children[0]) == (parent, children)


def test_a_common_noun_stays_what_it_is_among_others(monkeypatch, wordnet):
    names = ["dog", *["lifting device"] * 20]
    assert in_wordnet(monkeypatch, wordnet[0], names, names).children[0] == ["puppy"]


def test_a_part_of_wordnet_is_none(monkeypatch, tmp_path):
    """A download that was stopped leaves such a folder."""
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_bytes(b"PK\3\4 and no more")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    assert load_wordnet() is None


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
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {row["agreement"]["coca_tiny"] for row in rows} <= {0, 0.333333, 0.666667, 1}
    after = [
        row["label"] == row["reranked"].get("coca_tiny", [row["answers"]["coca_tiny"][0]["class"]])[0] for row in rows
    ]
    assert np.mean([bool(row["reranked"]) for row in rows]) == pytest.approx(unsure["share"]["mean"])
    assert np.mean(after) == pytest.approx(unsure["total"]["mean"])
    assert "Unsure pictures" in (tmp_path / "out" / "zero_shot.html").read_text()
