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
        (path.stem for path in FOLDER.glob("*.yaml")),
        key=lambda name: (name.rstrip("0123456789"), len(name), name),  # context 77 before 128
    )
)


class Recipe(BaseModel):
    """A recipe: what it is for (the part `about` of its file), and its settings (the rest of the file).

    `settings` are fields of `FinetuneConfig`. `kind` is the kind of the caption set in `imagetext.readers.curated`,
    and `split` the part of that set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: str
    kind: str
    split: str
    licence: str  # the dataset's
    weights_licence: str  # that of the model that the recipe starts from
    settings: dict[str, Any]

    def check_input(self, specs: Sequence[str]) -> None:
        """Raise ValueError for an input that is not the recipe's caption set, or another split of it."""
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
    """Return the packaged recipe of this name, which is one of RECIPES."""
    import yaml  # here and not above, because only recipes need it

    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return Recipe(name=name, **settings.pop("about"), settings=settings)


def check_recipe(name: str) -> str:
    """Return the name if there is such a recipe; raises ValueError, with similar names, if there is not."""
    if name not in RECIPES:
        similar = ", ".join(difflib.get_close_matches(name, RECIPES, n=3))
        hint = f"similar names: {similar}" if similar else "`capsmith finetune --list-recipes` lists them"
        raise ValueError(f"no such recipe; {hint}")
    return name


def list_recipes() -> str:
    """Return one line for each recipe: its name, data set and context, and the data set's licence."""
    recipes = [read_recipe(name) for name in RECIPES]
    name_width = max(len(recipe.name) for recipe in recipes)
    dataset_width = max(len(recipe.dataset) for recipe in recipes)
    return "\n".join(
        f"{recipe.name:{name_width}}  {recipe.dataset:{dataset_width}}  "
        f"context {recipe.settings['context']:3}  {recipe.licence}"
        for recipe in recipes
    )
