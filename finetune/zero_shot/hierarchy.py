"""Improves unsure answers with the children and parents of classes (Hierarchy-CLIP, Ge et al. 2022, arXiv 2212.01758).

B: pictures in a batch, C: classes, T: templates, N: texts of classes and their children, E: embedding dimension,
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
WORDNET_ID = re.compile(r"n(\d{8})")  # the id of a noun, as ImageNet uses it for its classes
KIND_OF = "{} which is a kind of {}"

Family = tuple[str, list[str]]  # the parent of a class, "" if unknown, and its children


class Hierarchy(NamedTuple):
    """For each class, its parent, "" if unknown, and its children."""

    parents: Sequence[str]
    children: Sequence[Sequence[str]]

    @property
    def known(self) -> int:
        """The number of classes with a parent or a child."""
        return sum(bool(parent or children) for parent, children in zip(self.parents, self.children, strict=True))


def read_hierarchy(source: str) -> Callable[[Classes], Hierarchy]:
    """Return a function from classes to their hierarchy.

    source: `wordnet` (nltk's corpus), or a file with CHILD<tab>PARENT in each line. A child that is itself one of the
    classes is left out, because a picture of it belongs to that class.
    Raises ValueError if WordNet is not on this machine or the file cannot be read. The function raises ValueError if
    the source knows none of the classes.
    """
    families = _wordnet_families() if source == WORDNET else _file_families(source)

    def find(classes: Classes) -> Hierarchy:
        hierarchy = Hierarchy(*zip(*families(classes), strict=True))
        if not hierarchy.known:
            raise ValueError(
                f"--hierarchy {source}: knows none of the {len(classes.names):,} classes, which begin with "
                f"{', '.join(map(repr, classes.names[:3]))}"
            )
        return hierarchy

    return find


def _wordnet_families() -> Callable[[Classes], list[Family]]:
    """Return a function from classes to their families in WordNet.

    A class is looked up by its synset id, otherwise as a noun by its name, but not as the name of a person or place.
    If several nouns have the name, their commonness is multiplied by the number of classes whose first noun is of the
    same kind (WordNet's own kinds: animals, food, artifacts, …). So among animals a leopard is an animal, not a fur.
    Of several parents the most specific one counts (nltk does not order them). Parents and children are given by their
    first names.
    """
    if (wordnet := load_wordnet()) is None:
        raise ValueError(
            f"--hierarchy {WORDNET}: nltk's corpus is not on this machine; `python -m nltk.downloader wordnet` "
            "downloads it, or give a file with CHILD<tab>PARENT in each line"
        )

    def nouns(label: str, name: str) -> list[Any]:
        if number := WORDNET_ID.fullmatch(label):
            with warnings.catch_warnings(action="ignore"):  # WordNet warns of unknown ids
                if synset := wordnet.synset_from_pos_and_offset("n", int(number[1])):
                    return [synset]
        synsets = wordnet.synsets(name.replace(" ", "_"), "n")
        return [synset for synset in synsets if not synset.instance_hypernyms()]

    def commonness(synset: Any) -> int:
        return 1 + sum(lemma.count() for lemma in synset.lemmas())

    def first_name(synset: Any) -> str:
        return synset.lemma_names()[0].replace("_", " ")

    def family(synset: Any, class_synsets: Set[Any]) -> Family:
        parents = sorted(synset.hypernyms(), key=lambda parent: (-parent.max_depth(), parent.name()))
        children = {*synset.hyponyms()} - class_synsets
        return next(map(first_name, parents), ""), sorted(map(first_name, children))

    def families(classes: Classes) -> list[Family]:
        nouns_by_class = list(map(nouns, classes.labels, classes.names))
        kinds = Counter(synsets[0].lexname() for synsets in nouns_by_class if synsets)
        chosen = [
            max(synsets, key=lambda synset: commonness(synset) * kinds[synset.lexname()], default=None)
            for synsets in nouns_by_class
        ]
        return [family(synset, set(chosen)) if synset else ("", []) for synset in chosen]

    return families


def _file_families(path: str) -> Callable[[Classes], list[Family]]:
    """Return a function from classes to their families in a file.

    A class is looked up by its label and its name. If it has several parents, the first counts.
    """
    try:
        lines = read_bytes(plain_path(path), limits.DOCUMENT).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"--hierarchy {path}: is neither {WORDNET} nor a readable file: {error}") from error
    edges = {line: [part.strip() for part in line.split("\t")] for line in lines if line.strip()}
    if wrong := [line for line, edge in edges.items() if len(edge) != 2 or not all(edge)]:
        raise ValueError(f"--hierarchy {path}: {wrong[0]!r} is not CHILD<tab>PARENT")
    parents: dict[str, str] = {}
    children: dict[str, list[str]] = {}
    for child, parent in edges.values():
        parents.setdefault(child, parent)
        children.setdefault(parent, []).append(child)

    def families(classes: Classes) -> list[Family]:
        name_of_label = dict(zip(classes.labels, classes.names, strict=True))
        class_terms = {*classes.labels, *classes.names}

        def family(label: str) -> Family:
            terms = dict.fromkeys((label, name_of_label[label]))
            parent = next(filter(None, map(parents.get, terms)), "")
            class_children = dict.fromkeys(child for term in terms for child in children.get(term, ()))
            return name_of_label.get(parent, parent), [child for child in class_children if child not in class_terms]

        return list(map(family, classes.labels))

    return families


class Doubt(NamedTuple):
    """Which pictures (B,) a model is unsure of, and their reranked classes (B, K), best first.

    agreement: the share of the templates that give the same class when used alone as all templates together.
    """

    unsure: Tensor
    agreement: Tensor
    ranked: Tensor


class Reranker:
    """Finds the pictures that a model is unsure of, and ranks their classes again.

    A model is sure of a picture if the bare class names, all templates, and the first and second half of the templates
    give the same class. If not, the five best classes by the bare names are ranked again: each by its nearest text,
    among those of the class itself and of its children, which name the parent, too.
    """

    @torch.inference_mode()
    def __init__(
        self, embed_texts: EmbedTexts, names: Sequence[str], templates: Sequence[str], *, hierarchy: Hierarchy
    ):
        parts = list(class_texts(embed_texts, names, templates))
        self.classes = torch.cat([mean_text(part) for part in parts])  # (C, E), as from `class_features`
        self.templates = torch.cat(parts).transpose(0, 1)  # (T, C, E)
        middle = (len(templates) + 1) // 2
        halves = [half.transpose(0, 1) for half in (self.templates[:middle], self.templates[middle:]) if len(half)]
        self.bare = class_features(embed_texts, names, ["{}"])  # (C, E)
        self.halves = list(map(mean_text, halves))  # (C, E) each
        texts, owners = [], []
        for index, (name, parent, children) in enumerate(zip(names, *hierarchy, strict=True)):
            own_texts = [KIND_OF.format(text, parent) if parent else text for text in (name, *children)]
            texts += own_texts
            owners += [index] * len(own_texts)
        self.texts = class_features(embed_texts, texts, ["{}"])  # (N, E)
        self.owners = torch.tensor(owners, device=self.texts.device)  # (N,): the class of each text

    def __call__(self, pictures: Tensor, first: Tensor) -> Doubt:
        """Return the doubts about pictures (B, E); first (B,): their best classes by all templates."""

        def agree(classes: Tensor) -> Tensor:
            return (pictures @ classes.T).argmax(dim=1) == first  # (B,)

        bare = pictures @ self.bare.T  # (B, C)
        unsure = ~torch.stack([bare.argmax(dim=1) == first, *map(agree, self.halves)]).all(dim=0)
        agreement = torch.stack([agree(classes) for classes in self.templates]).double().mean(dim=0)
        candidates = bare.topk(min(KEPT, bare.shape[1]), dim=1).indices  # (B, K)
        # (B, C): the cosine of the nearest text of each class
        nearest = torch.full_like(bare, -torch.inf).scatter_reduce_(
            1, self.owners.expand(len(bare), -1), pictures @ self.texts.T, reduce="amax"
        )
        order = nearest.gather(1, candidates).argsort(dim=1, descending=True, stable=True)
        return Doubt(unsure, agreement, candidates.gather(1, order))
