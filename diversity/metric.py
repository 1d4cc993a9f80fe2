"""Every measure as an `evaluate.Metric`, loaded by path with no network: `evaluate.load(diversity.METRIC, NAME)`.

`evaluate` copies this file into its cache and imports the copy. The copy imports the installed package `diversity`.
"""

from typing import Any

import datasets
import evaluate

from diversity.measures import catalogue
from diversity.score import score_captions

NAMES = {"_".join(measure.path): measure for measure in catalogue.ALL}
AGAINST_REFERENCES = {
    "novelty_ngrams_4",
    "novelty_captions",
    "word_coverage",
    "cider_d",
    "bleu_4",
    "rouge_l",
    "meteor",
    "found_words",
    "semantic_coverage",
    "semantic_found_meaning",
    "clip_ref_clip_score",
}
TEXTS = datasets.Sequence(datasets.Value("string"))


class CaptionDiversity(evaluate.Metric):
    """One measure, named by the configuration; under `default` all measures that need no references."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in (*NAMES, "default"):
            raise ValueError(f"measure {self.config_name!r}: there is no such measure; choose from {', '.join(NAMES)}")
        inputs = ["predictions", "references"] if self.config_name in AGAINST_REFERENCES else ["predictions"]
        measure = NAMES.get(self.config_name)
        return evaluate.MetricInfo(
            description=measure.definition if measure else "All measures of captions that need no references.",
            citation="",
            inputs_description="predictions: the captions of each picture, a list of lists of strings. references: "
            "human captions of the same pictures, for measures that compare with them. images, clip, embedder, seed: "
            "as in score_captions. The result has left_out, the indices of pictures that could not be measured, if "
            "there are any.",
            features=datasets.Features({name: TEXTS for name in inputs}),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """Compute the measure; raise ValueError for references that are missing, or that `evaluate` would drop."""
        if predictions is not None and references is None and self.config_name in AGAINST_REFERENCES:
            raise ValueError(f"references: {self.config_name} compares captions with human ones, and none were given")
        if references is not None and self.config_name not in AGAINST_REFERENCES:
            raise ValueError(
                f"references: {self.config_name} takes none; measures that take references: "
                f"{', '.join(sorted(AGAINST_REFERENCES))}"
            )
        return super().compute(predictions=predictions, references=references, **options)

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]] | None = None, **options: Any
    ) -> dict[str, Any]:
        report = score_captions({"predictions": predictions}, references=references, **options)
        row = report.rows["predictions"]
        left_out = {
            number
            for number, captions in enumerate(predictions)
            if not captions or references is not None and not references[number]
        }
        if self.config_name == "default":
            values = {name: measure.value(row) for name, measure in NAMES.items() if name not in AGAINST_REFERENCES}
        else:
            measure = NAMES[self.config_name]
            values = {self.config_name: measure.value(row)}
            keys = options.get("keys") or list(map(str, range(len(predictions))))
            left_out |= {keys.index(key) for key in report.unscored["predictions"].get(measure.score, ())}
        return {**values, **({"left_out": sorted(left_out)} if left_out else {})}
