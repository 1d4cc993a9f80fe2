"""Students: their training data, their training by `capsmith train-student`, and their scores on unseen pictures.

P: pictures, C: classes, T: texts, E: dimension of embeddings
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.evidence.choice import Pair, choices, held_out_pairs
from benchmarks.evidence.sets import CAPTIONS, LEVEL, POINTS, REWRITTEN, WORDS
from captioners.resolve import SHIPPED
from diversity.measures.clip_score import embed_images, search
from diversity.measures.embedders import Embedder, OpenClip
from finetune.student.config import StudentConfig
from finetune.student.run import run as train_student
from imagetext.outputs import write_file
from imagetext.sample import Record
from imagetext.scenes.facts import BACKGROUNDS, COLOURS, PLURALS, SHAPES
from imagetext.scenes.words import COUNT_WORDS
from imagetext.sources import read_samples

MODEL = Path(__file__).parent / "student"  # the config; the tokenizer is that of the built-in captioner
TEST = "scenes:test,n=1000,level={},seed=7"
RECIPE = {"samples_seen": 12_800, "batch_size": 64, "learning_rate": 1e-3}


class Arm(NamedTuple):
    """The training of a student: columns of captions, logit scales of teachers, hard negatives, further settings."""

    columns: Sequence[str] = ()
    scales: Sequence[float] = ()  # logit scales of the teachers; without any, CLIP's own loss
    negatives: str = ""  # column of hard negatives
    records: str = "reinforced"  # folder of the set
    student: str = "student"  # folder of the untrained student
    level: int = LEVEL  # most objects in the pictures on which it is measured
    chooses: bool = False  # whether it is also measured on the held-out choice

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of StudentConfig for this arm."""
        synthetic = {"columns": f"^syn_text_({'|'.join(self.columns)})$"} if self.columns else {"synthetic_weight": 0}
        negatives = {"negatives": f"^neg_text_{self.negatives}$"} if self.negatives else {}
        plain = {"distill_weight": 0, "contrastive_weight": 1}
        return {**synthetic, **negatives, **({"logit_scale": list(self.scales)} if self.scales else plain)}


SCALES = (10.0, 25.0, 60.0)
BASE = 25.0  # scale of one teacher while the other's varies; the teachers' own scales are 25.0 and 24.6
SCALED = {
    f"scale_{first:g}_{second:g}": Arm(("much_p09",), (first, second))
    for first, second in dict.fromkeys([*((scale, BASE) for scale in SCALES), *((BASE, scale) for scale in SCALES)])
}
NONE, DISTILLED, BOTH = "none", "distilled", f"scale_{BASE:g}_{BASE:g}"
ARMS = {
    NONE: Arm(),
    DISTILLED: Arm(scales=(BASE, BASE)),
    **SCALED,
    **{name: Arm((name,)) for name in POINTS},
    "one_captioner": Arm(("much_three",)),
    "three_captioners": Arm(("much_one", "other_one", "long_one")),
}
OF_WORDS = {  # arms of texts that are made from texts; the first arm is again the alt text alone
    "words_none": Arm(records=WORDS, chooses=True),
    "words_negatives": Arm(negatives="alt", records=WORDS, chooses=True),
    "words_captions": Arm((CAPTIONS,), records=WORDS, chooses=True),
    "words_captions_negatives": Arm((CAPTIONS,), negatives=CAPTIONS, records=WORDS, chooses=True),
}
OF_REWRITES = {  # arms that need a language model
    "rewrites": Arm(("laclip",), records=REWRITTEN, chooses=True),
    "rewrites_captions": Arm(("laclip", CAPTIONS), records=REWRITTEN, chooses=True),
}
ALL = {**ARMS, **OF_WORDS, **OF_REWRITES}


def student_folder(output: Path, model: Path = MODEL) -> Path:
    """Write the untrained student in open_clip's layout, with config and tokenizer; return its folder."""
    folder = output / model.name
    shutil.copytree(model, folder, dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SHIPPED / "coca_tiny" / name, folder / name)
    return folder


def result_file(output: Path, arm: str, seed: int) -> Path:
    """The file with the scores of a finished run."""
    return output / "results" / f"{arm}-{seed}.json"


def train(output: Path, arms: Mapping[str, Arm], seeds: int, processes: int) -> None:
    """Train and measure all students that are not done; all arms of a seed come before the next seed."""
    to_do = [(name, seed) for seed in range(seeds) for name in arms if not result_file(output, name, seed).exists()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run_student, output, name, arms[name], seed) for name, seed in to_do]
        for run in tqdm(as_completed(runs), desc="students", total=len(runs)):
            run.result()


def run_student(output: Path, name: str, arm: Arm, seed: int) -> None:
    """Train and measure one student, unless that is done, and delete the trained student."""
    result = result_file(output, name, seed)
    if result.exists():
        return
    begun, folder = time.monotonic(), output / "students" / f"{name}-{seed}"
    config = StudentConfig(
        input=[str(output / arm.records / "*.tar")],
        student=str(output / arm.student),
        output=folder,
        seed=seed,
        num_workers=0,
        device="cpu",
        **RECIPE,
        **arm.settings,
    )
    if code := train_student(config):
        raise RuntimeError(f"capsmith train-student failed with exit code {code}: {folder}")
    samples = test_pictures(arm.level)
    scores = measure(OpenClip(str(folder)), samples, test_pairs(arm.level) if arm.chooses else ())
    result.parent.mkdir(parents=True, exist_ok=True)
    write_file(
        result, json.dumps({"arm": name, "seed": seed, **scores, "seconds": round(time.monotonic() - begun, 1)})
    )
    shutil.rmtree(folder)


@cache
def test_pictures(level: int) -> tuple[Record, ...]:
    """Pictures that neither students nor captioners have seen, with their curated captions."""
    return tuple(sample for shard in read_samples([TEST.format(level)]) for sample in shard)


@cache
def test_pairs(level: int) -> tuple[Pair, ...]:
    """Pairs of these pictures' captions and hard negatives of them."""
    return tuple(held_out_pairs(test_pictures(level)))


def measure(student: OpenClip, samples: Sequence[Record], pairs: Sequence[Pair] = ()) -> dict[str, float]:
    """Zero-shot accuracies and R@1 in both directions, from 0 to 1.

    `classification` and `retrieval` are the means of these, and `score` is the mean of both. With pairs of captions
    and hard negatives, the scores also say how often the caption is chosen; this is not part of a mean.
    """
    pictures, _ = embed_images(student, [sample.image for sample in samples])  # (P, E)
    texts = Embedder(student.name, student.embed_texts)
    accuracies = {
        attribute: accuracy(pictures, texts, prompts, [truth(sample.meta["scene"], attribute) for sample in samples])
        for attribute, prompts in PROMPTS.items()
    }
    owners = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    captions = texts.encode([caption for sample in samples for caption in sample.captions])  # (T, E)
    ranks = search(captions, owners, pictures, np.arange(len(samples)))
    retrieved = {
        "text_to_image": float(ranks["r_at_1"].mean()),
        "image_to_text": float(ranks["image_coverage"].mean()),
    }
    means = {
        "classification": float(np.mean(list(accuracies.values()))),
        "retrieval": float(np.mean(list(retrieved.values()))),
    }
    chosen = choices(pictures, captions, texts.encode([pair.negative for pair in pairs]), pairs) if pairs else {}
    return {**accuracies, **retrieved, **means, "score": float(np.mean(list(means.values()))), **chosen}


THINGS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
PROMPTS = {  # prompts for each class of an attribute; their embeddings are averaged
    "colour": {colour: [f"a {colour} {shape}" for shape in SHAPES] for colour in COLOURS},
    "shape": {shape: [f"a {colour} {shape}" for colour in COLOURS] for shape in SHAPES},
    "count": {
        "one": [text for colour, shape in THINGS for text in (f"one {colour} {shape}", f"a single {colour} {shape}")],
        **{
            count: [
                text
                for colour, shape in THINGS
                for text in (f"{count} {colour} {PLURALS[shape]}", f"{count} shapes: a {colour} {shape}")
            ]
            for count in COUNT_WORDS[2:]
        },
    },
    "background": {
        name: [f"a {colour} {shape} on a {name} background" for colour, shape in THINGS] for name in BACKGROUNDS
    },
}


def truth(scene: Mapping[str, Any], attribute: str) -> str | None:
    """The scene's class in this attribute, or None if its objects differ in it."""
    match attribute:
        case "count":
            return COUNT_WORDS[len(scene["objects"])]
        case "background":
            return scene["background"]
    values = {item[attribute] for item in scene["objects"]}
    return values.pop() if len(values) == 1 else None


def accuracy(
    pictures: np.ndarray, texts: Embedder, prompts: Mapping[str, Sequence[str]], truths: Sequence[str | None]
) -> float:
    """The share of pictures (P, E) that are nearest to the mean of their class's prompts, averaged over classes.

    Chance is 1 ÷ C. Classes without pictures are left out.
    """
    names = [name for name in prompts if name in truths]
    classes = np.stack([texts.encode(prompts[name]).mean(axis=0) for name in names])  # (C, E)
    nearest = (pictures @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T).argmax(axis=1)  # (P,)
    right = {name: [names[index] == name for index, true in zip(nearest, truths) if true == name] for name in names}
    return float(np.mean([np.mean(of_class) for of_class in right.values() if of_class]))
