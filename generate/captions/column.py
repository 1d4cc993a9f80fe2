"""A column that a run writes: its captioner, what that is asked, how it draws, and what becomes of its answers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from captioners.base import Captioned, Captioner, Request, SamplingConfig
from generate.captions.gate import Gate
from generate.captions.said import Reading
from generate.captions.tasks import Task


@dataclass(frozen=True)
class Column:
    """A column to write, as the run has settled it: its captioner, what that is asked, how it draws, what becomes of the answers.

    `name` is what draws are told apart by. `dtype` is the captioner's, `batch_size` counts the requests in flight.
    """

    name: str
    captioner: Captioner
    sampling: SamplingConfig = SamplingConfig()
    gate: Gate = Gate()
    similarity: bool = False
    dtype: str = "fp32"
    batch_size: int = 16
    task: Task = Task()

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The columns that its answers go to: several where they are JSON."""
        return tuple(self.task.fields.values()) or (self.name,)

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.writes, self.sampling.answer, self.task.fields, self.gate, of_words=not self.looks)

    @property
    def looks(self) -> bool:
        """Whether its captioner is shown the picture."""
        return self.captioner.looks_at_pictures and not self.task.text_only

    def check(self) -> None:
        """Raises ValueError, with all problems, where the captioner does not do what the column asks."""
        asks, captioner, problems = self.task.instruction is not None, self.captioner, []
        if captioner.needs_instruction and not asks:
            problems.append(f"instruction: {captioner.name} has nothing to say without one; --instruction gives it")
        if asks and not captioner.takes_instruction:
            problems.append(f"instruction: {captioner.name} takes none; a language or vision-language model does")
        if captioner.needs_picture and self.task.text_only:
            problems.append(
                f"text_only: {captioner.name} needs a picture; name a language model by --model, or by --text-model where a "
                "recipe has several columns"
            )
        if problems:
            raise ValueError(f"{self.name}: {'; '.join(problems)}")
        captioner.check(self.sampling, similarity=self.needs_similarity)

    def caption(self, requests: Iterable[Request], redraw: int = 0) -> Iterator[Captioned]:
        """The captions of requests; redraw r of caption i draws as number `num_captions * r + i`."""
        return self.captioner.caption(
            requests,
            self.sampling,
            column=self.name,
            first_index=self.sampling.num_captions * redraw,
            similarity=self.needs_similarity,
            batch_size=self.batch_size,
        )

    @property
    def needs_similarity(self) -> bool:
        return self.similarity or self.gate.min_similarity is not None
