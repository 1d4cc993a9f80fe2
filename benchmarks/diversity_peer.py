"""The peers of `diversity.py`, in their own environment: the same measures by other packages.

This file imports nothing of ours. Its argument is a JSON object: `captions`, a file with one caption per line and
words separated by single spaces; and `group`, the number of captions per picture. PyPI's diversity cannot be imported
without spaCy, which it does not require, so only the file of its measure is loaded.
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
    """Pairs of each caption and the other captions of its picture."""
    for start in range(0, len(texts), group):
        captions = texts[start : start + group]
        for index, caption in enumerate(captions):
            yield caption, captions[:index] + captions[index + 1 :]


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
    """Whether a peer smooths each picture's mBLEU as we do; for pycocoevalcap, whether nothing needs smoothing."""
    if peer != "pycocoevalcap":
        return [True] * (len(texts) // group)

    def has_common_4_gram(caption, others):
        words = caption.split()
        grams = {tuple(words[start : start + 4]) for start in range(len(words) - 3)}
        return any(
            tuple(split[start : start + 4]) in grams
            for split in map(str.split, others)
            for start in range(len(split) - 3)
        )

    has_match = [has_common_4_gram(caption, others) for caption, others in leave_one_out(texts, group)]
    return [all(has_match[start : start + group]) for start in range(0, len(has_match), group)]


def main() -> None:
    options = json.loads(sys.argv[1])
    group = options["group"]
    with open(options["captions"], encoding="utf-8") as file:
        texts = file.read().splitlines()
    packages = ("diversity", "lexicalrichness", "nltk", "sacrebleu", "pycocoevalcap")
    print(json.dumps({name: metadata.version(name) for name in packages}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        chosen = texts[: question["pictures"] * group] if question["pictures"] else texts
        start = time.perf_counter()
        values = MEASURES[question["measure"], question["peer"]](chosen, group)
        answer = {"seconds": time.perf_counter() - start}
        if question["measure"] != "mbleu_4":
            answer["values"] = values
        elif question["pictures"]:
            answer["values"] = [sum(values[first : first + group]) / group for first in range(0, len(values), group)]
            answer["comparable"] = comparable(chosen, group, question["peer"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
