"""The paper's captioners (MobileCLIP2, arXiv 2508.20691) as packaged settings: `capsmith finetune --recipe NAME`."""

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

FOLDER = Path(__file__).parent / "recipes"
RECIPES = tuple(
    sorted(
        (path.stem for path in FOLDER.glob("*.yaml")),  # context 77 before 128
        key=lambda name: (name.rstrip("0123456789"), len(name), name),
    )
)


class Recipe(BaseModel):
    """What a recipe is for, the part `about` of its file, and the fields of `FinetuneConfig` that it sets, the rest.

    `kind` and `split` are those of `imagetext.readers.curated`; a split is all of a file whose kind has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str
    kind: str
    split: str
    licence: str  # of the dataset
    weights_licence: str  # of the model that it starts from
    settings: dict[str, Any]

    def check_input(self, specs: Sequence[str]) -> None:
        """Refuses specs of another caption set, or another split, than the recipe's."""
        wrong = [
            spec
            for spec in specs
            if spec.partition(":")[0] != self.kind or spec.partition("#")[2] not in ("", self.split)
        ]
        if wrong:
            raise ValueError(
                f"recipe {self.name} takes {self.kind}:FILE ({self.dataset}, {self.split}), not {', '.join(wrong)}"
            )


@cache
def read_recipe(name: str) -> Recipe:
    """The packaged recipe of this name, one of RECIPES."""
    import yaml  # late: it is not needed where no recipe is

    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return Recipe(name=name, **settings.pop("about"), settings=settings)


def check_recipe(name: str) -> str:
    """The name, if there is such a recipe; else ValueError with those whose names are near."""
    if name not in RECIPES:
        near = ", ".join(difflib.get_close_matches(name, RECIPES, n=3))
        raise ValueError("no such recipe; " + (f"near it: {near}" if near else "finetune --list-recipes lists them"))
    return name


def list_recipes() -> str:
    """A line for each recipe: its name, data set, context, and the data set's licence."""
    recipes = [read_recipe(name) for name in RECIPES]
    name, dataset = (max(len(getattr(recipe, field)) for recipe in recipes) for field in ("name", "dataset"))
    return "\n".join(
        f"{recipe.name:{name}}  {recipe.dataset:{dataset}}  context {recipe.settings['context']:3}  {recipe.licence}"
        for recipe in recipes
    )
