"""Every measure as an `evaluate.Metric`, loaded by path with no network: `evaluate.load(diversity.METRIC, "self_cider")`.

`evaluate` copies this file into its cache and imports it there; `diversity` itself is the installed one.
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
    """The measure that the configuration is named after, or all that need no references under `default`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in (*NAMES, "default"):
            raise ValueError(f"measure {self.config_name!r}: is none of {', '.join(NAMES)}")
        inputs = ["predictions", "references"] if self.config_name in AGAINST_REFERENCES else ["predictions"]
        described = NAMES.get(self.config_name)
        return evaluate.MetricInfo(
            description=described.definition if described else "All measures of captions that need no references.",
            citation="",
            inputs_description="predictions: the captions of each picture, a list of lists of strings; references: human captions "
            "of the same pictures, where the measure is against them; images, clip, embedder, seed: as score_captions takes them. "
            "The result has left_out, numbers of the pictures that count nothing, where there are any.",
            features=datasets.Features({name: TEXTS for name in inputs}),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """`evaluate` drops references that a measure does not take without a word: here they are an error."""
        if references is not None and self.config_name not in AGAINST_REFERENCES:
            raise ValueError(
                f"references: {self.config_name} takes none; those that do: {', '.join(sorted(AGAINST_REFERENCES))}"
            )
        return super().compute(predictions=predictions, references=references, **options)

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]] | None = None, **options: Any
    ) -> dict[str, Any]:
        report = score_captions({"predictions": predictions}, references=references, **options)
        row = report.rows["predictions"]
        left_out = {
            picture
            for picture, group in enumerate(predictions)
            if not group or references is not None and not references[picture]
        }
        if self.config_name == "default":
            values = {name: measure.value(row) for name, measure in NAMES.items() if name not in AGAINST_REFERENCES}
        else:
            measure = NAMES[self.config_name]
            values = {self.config_name: measure.value(row)}
            keys = options.get("keys") or list(map(str, range(len(predictions))))
            left_out |= {keys.index(key) for key in report.unscored["predictions"].get(measure.score, ())}
        return {**values, **({"left_out": sorted(left_out)} if left_out else {})}
