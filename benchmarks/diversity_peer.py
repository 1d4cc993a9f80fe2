"""The peers of `diversity.py`, in their own environment: other packages' measures of the same captions.

Imports nothing of ours. Its argument is a JSON object: `captions`, a file with a caption a line, words split by single spaces;
and `group`, captions of a picture. PyPI's diversity cannot be imported as a package without spaCy, which it does not ask for, so
the file of the measure is loaded alone.
"""

import importlib.util
import json
import sys
import time
from importlib import metadata

import sacrebleu
from lexicalrichness import LexicalRichness
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from pycocoevalcap.bleu.bleu_scorer import BleuScorer


def load_diversity(module: str):
    file = metadata.distribution("diversity").locate_file(f"diversity/{module}.py")
    spec = importlib.util.spec_from_file_location(f"peer_{module}", file)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


NGRAMS = load_diversity("ngram_diversity")


def distinct(texts, group):
    return NGRAMS.ngram_diversity_score(texts)


def vocabulary(texts, group):
    richness = LexicalRichness([word for text in texts for word in text.split()], preprocessor=None, tokenizer=None)
    return richness.terms


def leave_one_out(texts, group):
    """Each caption of each picture with the picture's others."""
    for start in range(0, len(texts), group):
        captions = texts[start : start + group]
        for at, caption in enumerate(captions):
            yield caption, captions[:at] + captions[at + 1 :]


def mbleu_nltk(texts, group):
    smoothing = SmoothingFunction().method3
    return [
        sentence_bleu(
            [other.split() for other in others], caption.split(), smoothing_function=smoothing, auto_reweigh=True
        )
        for caption, others in leave_one_out(texts, group)
    ]


def mbleu_sacrebleu(texts, group):
    metric = sacrebleu.BLEU(smooth_method="exp", tokenize="none", effective_order=True)
    return [metric.sentence_score(caption, others).score / 100 for caption, others in leave_one_out(texts, group)]


def mbleu_pycocoevalcap(texts, group):
    scorer = BleuScorer(n=4)
    for caption, others in leave_one_out(texts, group):
        scorer += (caption, others)
    return scorer.compute_score(option="closest", verbose=0)[1][3]


MEASURES = {
    ("distinct", "diversity"): distinct,
    ("vocabulary", "lexicalrichness"): vocabulary,
    ("mbleu_4", "nltk"): mbleu_nltk,
    ("mbleu_4", "sacrebleu"): mbleu_sacrebleu,
    ("mbleu_4", "pycocoevalcap"): mbleu_pycocoevalcap,
}


def comparable(texts, group, peer):
    """Pictures whose mBLEU a peer smooths as we do: pycocoevalcap's are those where nothing needs smoothing."""
    if peer != "pycocoevalcap":
        return [True] * (len(texts) // group)

    def matched(caption, others):
        words = caption.split()
        grams = {tuple(words[at : at + 4]) for at in range(len(words) - 3)}
        return any(
            tuple(split[at : at + 4]) in grams for split in map(str.split, others) for at in range(len(split) - 3)
        )

    found = [matched(caption, others) for caption, others in leave_one_out(texts, group)]
    return [all(found[at : at + group]) for at in range(0, len(found), group)]


def main() -> None:
    options = json.loads(sys.argv[1])
    group = options["group"]
    with open(options["captions"], encoding="utf-8") as file:
        texts = file.read().splitlines()
    packages = ("diversity", "lexicalrichness", "nltk", "sacrebleu", "pycocoevalcap")
    print(json.dumps({name: metadata.version(name) for name in packages}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        some = texts[: asked["pictures"] * group] if asked["pictures"] else texts
        start = time.perf_counter()
        values = MEASURES[asked["measure"], asked["peer"]](some, group)
        answer = {"seconds": time.perf_counter() - start}
        if asked["measure"] != "mbleu_4":
            answer["values"] = values
        elif asked["pictures"]:
            answer["values"] = [sum(values[at : at + group]) / group for at in range(0, len(values), group)]
            answer["comparable"] = comparable(some, group, asked["peer"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
