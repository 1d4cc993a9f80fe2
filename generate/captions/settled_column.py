"""A caption column as a run has settled it: loaded captioner, task, sampling, gate, batch size, dtype and products."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from captioners.base import Captioned, Captioner, Request, SamplingConfig
from generate.captions.gate import Gate
from generate.captions.judged_answers import AnswerReader
from generate.captions.tasks import Task


@dataclass(frozen=True)
class SettledColumn:
    """A column that a run writes, with everything settled that its configuration left open.

    name: the column's name; the draws of different columns differ by it. dtype: the captioner's.
    products: the library of its float32 products on a CPU, None where it has none. batch_size: requests in flight.
    """

    name: str
    captioner: Captioner
    sampling: SamplingConfig = SamplingConfig()
    gate: Gate = Gate()
    similarity: bool = False
    dtype: str = "fp32"
    products: str | None = None
    batch_size: int = 16
    task: Task = Task()

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The names of the columns that the answers go to: several where the answers are JSON."""
        return tuple(self.task.fields.values()) or (self.name,)

    @cached_property
    def answer_reader(self) -> AnswerReader:
        """Reads and judges the answers."""
        return AnswerReader(
            self.writes,
            self.sampling.answer,
            self.task.fields,
            gate=self.gate,
            from_words_alone=not self.looks,
            is_plain=not self.captioner.takes_instruction,
        )

    @property
    def looks(self) -> bool:
        """Whether the captioner is shown the picture."""
        return self.captioner.looks_at_pictures and not self.task.text_only

    @property
    def needs_similarity(self) -> bool:
        """Whether each caption needs its similarity with the picture."""
        return self.similarity or self.gate.min_similarity is not None

    def check(self) -> None:
        """Check that the captioner can do what the column needs. Raises: ValueError with all problems."""
        captioner, problems = self.captioner, []
        has_instruction = self.task.instruction is not None
        has_nothing_to_send = self.task.text_only and not captioner.needs_picture
        if (captioner.needs_instruction or has_nothing_to_send) and not has_instruction:
            problems.append(f"instruction: {captioner.name} needs one; give it with --instruction")
        if has_instruction and not captioner.takes_instruction:
            problems.append(
                f"instruction: {captioner.name} takes none; use a language model or a vision-language model"
            )
        if captioner.needs_picture and self.task.text_only:
            problems.append(
                f"text_only: {captioner.name} needs a picture; name a language model with --model, or with "
                "--text-model where a recipe has several columns"
            )
        if problems:
            raise ValueError(f"{self.name}: {'; '.join(problems)}")
        captioner.check(self.sampling, similarity=self.needs_similarity)

    def caption(self, requests: Iterable[Request], redraw: int = 0) -> Iterator[Captioned]:
        """Yield the captions of requests; in redraw r, caption i is draw number `num_captions * r + i` of its key."""
        return self.captioner.caption(
            requests,
            self.sampling,
            column=self.name,
            first_index=self.sampling.num_captions * redraw,
            similarity=self.needs_similarity,
            batch_size=self.batch_size,
        )
