"""Zero-shot classification: the classes whose texts are nearest to a picture, as in open_clip's evaluation.

P: pictures, C: classes, T: templates, E: embedding dimension, K: answers for each picture, best first
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imagetext import limits
from imagetext.stores import plain_path, read_bytes

KEPT = 5  # number of answers for each picture (K)
SCALE = 100.0  # the logit scale of cosines in open_clip's evaluation
AT_ONCE = 10  # number of classes whose texts are embedded together, as in open_clip's evaluation
PLAIN = "a photo of a {}."

EmbedTexts = Callable[[list[str]], Tensor]  # N texts -> (N, E) of unit length


class Answers(NamedTuple):
    """The best classes for each picture and their probabilities, (P, K) each."""

    classes: Tensor
    probabilities: Tensor


def read_templates(name: str) -> list[str]:
    """Return the templates of that name, or those of a file, one in each line; {} in a template stands for the class.

    Raises ValueError if there is no such file, if it is empty, or if a template has no {}.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    built_in = {"imagenet": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}
    if name in built_in:
        return [template("{}") for template in built_in[name]]
    if name in ("plain", "name"):
        return [PLAIN if name == "plain" else "{}"]
    try:
        lines = read_bytes(plain_path(name), limits.DOCUMENT).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--templates {name}: is none of imagenet, simple, plain and name, and not a readable file: {error}"
        ) from error
    templates = [line.strip() for line in lines if line.strip()]
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"--templates {name}: no {{}} for the class in {wrong[0]!r}")
    if not templates:
        raise ValueError(f"--templates {name}: is empty")
    return templates


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return each class name in each template, C T texts, with the texts of a class together."""
    return [template.replace("{}", name) for name in names for template in templates]


@torch.inference_mode()
def class_features(embed_texts: EmbedTexts, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return class features (C, E), unit-length means over templates (Radford et al. 2021, arXiv 2103.00020)."""
    return torch.cat([mean_text(texts) for texts in class_texts(embed_texts, names, templates)])


def class_texts(embed_texts: EmbedTexts, names: Sequence[str], templates: Sequence[str]) -> Iterator[Tensor]:
    """Yield the text features (AT_ONCE, T, E) of one group of classes after another."""
    for start in range(0, len(names), AT_ONCE):
        group = names[start : start + AT_ONCE]
        yield embed_texts(prompts(group, templates)).unflatten(0, (len(group), -1))


def mean_text(texts: Tensor) -> Tensor:
    """Return the mean over templates of text features (C, T, E), as (C, E) of unit length."""
    mean = texts.mean(dim=1)
    return mean / mean.norm(dim=1, keepdim=True)


def nearest_classes(pictures: Tensor, classes: Tensor) -> Answers:
    """Return the classes (C, E) that are nearest to each picture (P, E); all features have unit length."""
    logits = SCALE * pictures @ classes.T  # (P, C)
    best = logits.topk(min(KEPT, len(classes)), dim=1).indices
    return Answers(best, logits.float().softmax(dim=1).gather(1, best))
