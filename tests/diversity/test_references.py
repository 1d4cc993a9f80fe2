"""Scores against references: pycocoevalcap's numbers given the same words, and closed forms."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from diversity.measures.references import bleu_4, cider_d, reference_scores, rouge_l


def drawn(seed, pictures=30, vocabulary=6, shortest=0):
    """Random captions and one to five references each, of a vocabulary so small that much is shared."""
    random = np.random.default_rng(seed)

    def text(shortest):
        return [f"w{number}" for number in random.integers(vocabulary, size=random.integers(shortest, 14))]

    return [text(shortest) for _ in range(pictures)], [
        [text(1) for _ in range(random.integers(1, 6))] for _ in range(pictures)
    ]


def peer_form(captions, references):
    """As pycocoevalcap wants them: {picture: [text]}."""
    return (
        {index: [" ".join(text) for text in texts] for index, texts in enumerate(references)},
        {index: [" ".join(text)] for index, text in enumerate(captions)},
    )


@pytest.mark.parametrize("seed", range(20))
def test_cider_d_is_pycocoevalcaps(seed):
    captions, references = drawn(seed, pictures=2 + 3 * seed, vocabulary=3 + seed)
    theirs = CiderScorer(n=4, sigma=6.0)
    for caption, texts in zip(captions, references):
        theirs += (" ".join(caption), [" ".join(text) for text in texts])
    mean, each = theirs.compute_score()
    ours = cider_d(captions, references)
    np.testing.assert_allclose(ours, each, atol=1e-9, rtol=1e-9)
    assert ours.mean() == pytest.approx(mean, abs=1e-9) and ours.mean() > 0


@pytest.mark.parametrize("seed", range(10))
def test_bleu_4_is_pycocoevalcaps(seed):
    captions, references = drawn(seed, vocabulary=3)  # so few that four in a row match: theirs is 1e-5 where none does
    theirs, _ = Bleu(4).compute_score(*peer_form(captions, references), verbose=0)
    assert bleu_4(captions, references) == pytest.approx(theirs[3], abs=1e-6)
    assert theirs[3] > 0.05


@pytest.mark.parametrize("seed", range(10))
def test_rouge_l_is_pycocoevalcaps(seed):
    captions, references = drawn(seed, shortest=1)
    _, theirs = Rouge().compute_score(*peer_form(captions, references))
    np.testing.assert_allclose(rouge_l(captions, references), theirs, atol=1e-12)


def test_a_reference_as_caption_scores_best_and_another_pictures_worse():
    texts = ["a red cat sleeps on a mat", "two dogs run over wet sand", "one man rides his old bike"]
    best = reference_scores(texts, [[text] for text in texts])
    assert (
        best["cider_d"] == pytest.approx(10)
        and best["bleu_4"] == pytest.approx(1)
        and best["rouge_l"] == pytest.approx(1)
    )
    assert reference_scores(texts, [[text] for text in texts[1:] + texts[:1]])["cider_d"] < 1


def test_cider_d_in_closed_form():
    """Two pictures, one word in common: only the word that is rare weighs, and length tells by a Gaussian."""
    ours = cider_d([["a"], ["a", "b", "c"]], [[["a"]], [["a", "b"]]])
    # "a" stands under both pictures and weighs 0; the second caption has half of its rare words right, and of its
    # bigrams.
    share = 1 / math.sqrt(2)
    np.testing.assert_allclose(ours, [0, 10 / 4 * 2 * share * math.exp(-1 / 72)])


def test_every_run_gives_the_same_cider_d_to_the_last_digit():
    """The order of a set of texts is different in each process."""
    code = (
        "from diversity.measures.references import CiderD\n"
        "texts = [[f'w{i % 7} w{i % 11} w{i % 5} w{i % 13} w{i % 3}'.split()] for i in range(90)]\n"
        "cider = CiderD(texts)\n"
        "print([cider.score(text + other, [other]) for [text], [other] in zip(texts, texts[1:])])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1


def test_words_not_marks_or_case_are_compared():
    references = [["A cat on the mat."], ["two dogs, running over sand"]]
    assert reference_scores(["a cat on the MAT", "Two dogs running over sand!"], references)[
        "bleu_4"
    ] == pytest.approx(1)


def test_one_picture_has_no_cider():
    assert reference_scores(["a cat on a mat"], [["a cat on a mat"]]) | {"meteor": 0} == {
        "cider_d": 0,
        "bleu_4": pytest.approx(1),
        "rouge_l": pytest.approx(1),
        "meteor": 0,
    }


def test_empty_captions_score_nothing():
    scores = reference_scores(["", "..."], [["a cat on a mat"], ["two dogs run", "", "!"]])
    assert scores["cider_d"] == scores["bleu_4"] == scores["rouge_l"] == 0


def test_a_picture_without_references_is_named():
    with pytest.raises(ValueError, match=r"pictures \[1, 2\]: no reference with a word"):
        reference_scores(["a", "b", "c"], [["a cat"], [], ["", "..."]])
    with pytest.raises(ValueError, match="2 captions for 1 pictures"):
        reference_scores(["a", "b"], [["a cat"]])
    with pytest.raises(ValueError, match="0 captions"):
        reference_scores([], [])


def meteor_in_a_process(nltk_data):
    """What a process prints that knows WordNet from this folder alone."""
    code = (
        "import nltk, sys\n"
        "nltk.data.path[:] = [sys.argv[1]]\n"
        "from diversity.measures.references import reference_scores\n"
        "print(reference_scores(['the hounds run home'], [['a bird', 'the dog runs home']]).get('meteor'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(nltk_data)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_meteor_is_there_with_wordnet_only(tmp_path):
    assert meteor_in_a_process(tmp_path) == "None"
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in (
        "cntlist.rev",
        "index.sense",
        *(f"{part}.{of}" for part in ("index", "data") for of in ("adj", "adv", "verb")),
        *(f"{of}.exc" for of in ("adj", "adv", "noun", "verb")),
    ):
        (folder / name).write_text("")
    (folder / "lexnames").write_text("00\tnoun.animal\t1\n")
    (folder / "data.noun").write_text("00000000 00 n 02 dog 0 hound 0 000 | barks\n")
    (folder / "index.noun").write_text("dog n 1 0 1 0 00000000\nhound n 1 0 1 0 00000000\n")
    # the, home exactly; run = runs by stem; hounds ~ dog as synonyms: four matches in one chunk
    assert float(meteor_in_a_process(tmp_path)) == pytest.approx(1 - 0.5 / 4**3)


def test_a_user_without_a_home_has_the_measures():
    code = (
        "import os, pwd\n"
        "def getpwuid(_): raise KeyError\n"
        "pwd.getpwuid = getpwuid\n"
        "from diversity.measures.references import NoSynonyms, load_wordnet, meteor\n"
        "load_wordnet()\n"
        "print(meteor([['a', 'dog']], [[['a', 'dog']]], NoSynonyms()), 'HOME' in os.environ)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    # two matches in one chunk: 1 - 0.5 / 2**3
    assert done.stdout.split() == ["[0.9375]", "False"], done.stderr
