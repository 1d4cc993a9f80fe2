"""A CLIP model's answers: the class whose texts are nearest to a picture, as open_clip's zero-shot evaluation has it.

P: pictures   C: classes   T: templates   E: embedding   K: answers kept of a picture, best first
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imagetext import limits
from imagetext.stores import plain_path, read_bytes

KEPT = 5  # answers of a picture
SCALE = 100.0  # of the cosines, as in open_clip's evaluation
AT_ONCE = 10  # classes whose texts are embedded together, as open_clip has it
PLAIN = "a photo of a {}."

EmbedTexts = Callable[[list[str]], Tensor]  # (N, E) of length 1


class Answers(NamedTuple):
    """The best classes of each picture and their probabilities, (P, K) each."""

    classes: Tensor
    probabilities: Tensor


def read_templates(name: str) -> list[str]:
    """The templates of that name, or of a file, one a line, in which {} stands for the class; ValueError where it has none."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    known = {"imagenet": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}
    if name in known:
        return [template("{}") for template in known[name]]
    if name in ("plain", "name"):
        return [PLAIN if name == "plain" else "{}"]
    try:
        lines = read_bytes(plain_path(name), limits.DOCUMENT).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--templates {name}: none of imagenet, simple, plain and name, and no file that can be read: {error}"
        ) from error
    templates = [line.strip() for line in lines if line.strip()]
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"--templates {name}: no {{}} for the class in {wrong[0]!r}")
    if not templates:
        raise ValueError(f"--templates {name}: is empty")
    return templates


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each name in each template, (C T), the templates of a name together."""
    return [template.replace("{}", name) for name in names for template in templates]


@torch.inference_mode()
def class_features(embed_texts: EmbedTexts, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The classes' features (C, E), of length 1: the mean over the templates (Radford et al. 2021, arXiv 2103.00020)."""
    return torch.cat([mean_text(texts) for texts in class_texts(embed_texts, names, templates)])


def class_texts(embed_texts: EmbedTexts, names: Sequence[str], templates: Sequence[str]) -> Iterator[Tensor]:
    """The features (AT_ONCE, T, E) of the texts of some classes after another."""
    for at in range(0, len(names), AT_ONCE):
        some = names[at : at + AT_ONCE]
        yield embed_texts(prompts(some, templates)).unflatten(0, (len(some), -1))


def mean_text(texts: Tensor) -> Tensor:
    """(C, T, E) -> (C, E), of length 1."""
    mean = texts.mean(dim=1)
    return mean / mean.norm(dim=1, keepdim=True)


def answers(pictures: Tensor, classes: Tensor) -> Answers:
    """The nearest classes of pictures (P, E) among those of features (C, E); all of length 1."""
    logits = SCALE * pictures @ classes.T  # (P, C)
    best = logits.topk(min(KEPT, len(classes)), dim=1).indices
    return Answers(best, logits.float().softmax(dim=1).gather(1, best))
