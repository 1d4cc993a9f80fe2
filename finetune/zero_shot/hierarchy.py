"""Children and parents of classes make unsure answers better (Ge et al. 2022, Hierarchy-CLIP, arXiv 2212.01758).

B: pictures of a batch   C: classes   T: templates   N: texts of classes, their children's among them   E: embedding
K: candidates
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diversity.measures.references import load_wordnet
from finetune.zero_shot.classify import KEPT, EmbedTexts, class_features, class_texts, mean_text
from finetune.zero_shot.pictures import Classes
from imagetext import limits
from imagetext.stores import plain_path, read_bytes

WORDNET = "wordnet"
WORDNET_ID = re.compile(r"n(\d{8})")  # of a noun, as ImageNet names its classes
KIND_OF = "{} which is a kind of {}"

Family = tuple[str, list[str]]  # a class's parent, "" where none is known, and its children


class Hierarchy(NamedTuple):
    """Of each class, the parent, "" where none is known, and the children."""

    parents: Sequence[str]
    children: Sequence[Sequence[str]]

    @property
    def known(self) -> int:
        """How many classes have a parent or a child."""
        return sum(bool(parent or children) for parent, children in zip(self.parents, self.children, strict=True))


def read_hierarchy(where: str) -> Callable[[Classes], Hierarchy]:
    """What finds the classes' families: `wordnet`, nltk's corpus, or a file of edges, CHILD<tab>PARENT a line.

    A child that is itself among the classes is left out: a picture of it is of that class.
    Raises ValueError where WordNet is not on this machine, or the file has none.
    """
    families = _in_wordnet() if where == WORDNET else _in_file(where)

    def find(classes: Classes) -> Hierarchy:
        found = Hierarchy(*zip(*families(classes), strict=True))
        if not found.known:
            raise ValueError(
                f"--hierarchy {where}: knows none of the {len(classes.names):,} classes, which begin with "
                f"{', '.join(map(repr, classes.names[:3]))}"
            )
        return found

    return find


def _in_wordnet() -> Callable[[Classes], list[Family]]:
    """By the id of a synset, else a noun of the name; the most special parent (nltk has them in no order), by first names.

    Of several nouns of one name, the one is taken that is commonest, times how many of the classes are of its kind (WordNet's
    own: animals, food, artifacts, …): a leopard is an animal among animals, not a fur. None is a name of somebody or of a place.
    """
    if (wordnet := load_wordnet()) is None:
        raise ValueError(
            f"--hierarchy {WORDNET}: nltk's corpus is not on this machine; `python -m nltk.downloader wordnet` brings it, "
            "or give a file of edges, CHILD<tab>PARENT a line"
        )

    def nouns(label: str, name: str) -> list[Any]:
        if number := WORDNET_ID.fullmatch(label):
            with warnings.catch_warnings(action="ignore"):  # of an id that it does not have
                if synset := wordnet.synset_from_pos_and_offset("n", int(number[1])):
                    return [synset]
        return [one for one in wordnet.synsets(name.replace(" ", "_"), "n") if not one.instance_hypernyms()]

    def common(synset: Any) -> int:
        return 1 + sum(lemma.count() for lemma in synset.lemmas())

    def first_name(synset: Any) -> str:
        return synset.lemma_names()[0].replace("_", " ")

    def family(synset: Any, others: Set[Any]) -> Family:
        parents = sorted(synset.hypernyms(), key=lambda one: (-one.max_depth(), one.name()))
        return next(map(first_name, parents), ""), sorted({first_name(one) for one in {*synset.hyponyms()} - others})

    def families(classes: Classes) -> list[Family]:
        found = list(map(nouns, classes.labels, classes.names))
        kinds = Counter(senses[0].lexname() for senses in found if senses)
        chosen = [max(senses, key=lambda one: common(one) * kinds[one.lexname()], default=None) for senses in found]
        return [family(synset, set(chosen)) if synset else ("", []) for synset in chosen]

    return families


def _in_file(name: str) -> Callable[[Classes], list[Family]]:
    """A class is known by its label or its name; of several parents the first counts."""
    try:
        lines = read_bytes(plain_path(name), limits.DOCUMENT).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"--hierarchy {name}: is not {WORDNET}, and no file that can be read: {error}") from error
    parts = {line: [part.strip() for part in line.split("\t")] for line in lines if line.strip()}
    if wrong := [line for line, edge in parts.items() if len(edge) != 2 or not all(edge)]:
        raise ValueError(f"--hierarchy {name}: {wrong[0]!r} is no CHILD<tab>PARENT")
    parents: dict[str, str] = {}
    children: dict[str, list[str]] = {}
    for child, parent in parts.values():
        parents.setdefault(child, parent)
        children.setdefault(parent, []).append(child)

    def families(classes: Classes) -> list[Family]:
        called = dict(zip(classes.labels, classes.names, strict=True))
        among = {*classes.labels, *classes.names}

        def family(label: str) -> Family:
            known = dict.fromkeys((label, called[label]))
            parent = next(filter(None, map(parents.get, known)), "")
            below = dict.fromkeys(child for one in known for child in children.get(one, ()))
            return called.get(parent, parent), [child for child in below if child not in among]

        return list(map(family, classes.labels))

    return families


class Doubt(NamedTuple):
    """What a model's doubts of pictures (B,) are, and the classes (B, K) that it takes them for then, best first.

    agreement: the share of the templates by each of which alone a picture's class is the same as by all.
    """

    unsure: Tensor
    agreement: Tensor
    ranked: Tensor


class Reranker:
    """Which pictures a model is unsure of, and better answers for these.

    It is sure where the best class is the same by the bare name, all templates, their first and their second half. Else the
    five best by the bare name are ranked anew: each by its nearest text, of itself and of its children, with its parent.
    """

    @torch.inference_mode()
    def __init__(self, embed_texts: EmbedTexts, names: Sequence[str], templates: Sequence[str], hierarchy: Hierarchy):
        parts = list(class_texts(embed_texts, names, templates))
        self.classes = torch.cat([mean_text(part) for part in parts])  # (C, E), those of `class_features`
        self.templates = torch.cat(parts).transpose(0, 1)  # (T, C, E)
        middle = (len(templates) + 1) // 2
        halves = [half.transpose(0, 1) for half in (self.templates[:middle], self.templates[middle:]) if len(half)]
        self.bare = class_features(embed_texts, names, ["{}"])  # (C, E)
        self.halves = list(map(mean_text, halves))  # (C, E) each
        texts, owners = [], []
        for one, (name, parent, children) in enumerate(zip(names, *hierarchy, strict=True)):
            own = [KIND_OF.format(text, parent) if parent else text for text in (name, *children)]
            texts += own
            owners += [one] * len(own)
        self.texts = class_features(embed_texts, texts, ["{}"])  # (N, E)
        self.owners = torch.tensor(owners, device=self.texts.device)  # (N,)

    def __call__(self, pictures: Tensor, first: Tensor) -> Doubt:
        """Of pictures (B, E) and their best classes (B,) by all templates."""

        def agree(classes: Tensor) -> Tensor:
            return (pictures @ classes.T).argmax(dim=1) == first  # (B,)

        bare = pictures @ self.bare.T  # (B, C)
        unsure = ~torch.stack([bare.argmax(dim=1) == first, *map(agree, self.halves)]).all(dim=0)
        agreement = torch.stack([agree(classes) for classes in self.templates]).double().mean(dim=0)
        candidates = bare.topk(min(KEPT, bare.shape[1]), dim=1).indices  # (B, K)
        nearest = torch.full_like(bare, -torch.inf).scatter_reduce_(
            1, self.owners.expand(len(bare), -1), pictures @ self.texts.T, "amax"
        )
        order = nearest.gather(1, candidates).argsort(dim=1, descending=True, stable=True)
        return Doubt(unsure, agreement, candidates.gather(1, order))
