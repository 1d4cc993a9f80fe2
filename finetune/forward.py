"""What the trainer asks of a captioner or a student: `finetune.captioner.forward` and `finetune.student.model` have these.

B: pictures of a part of a batch, N: of the whole batch, K: captions of each, T: tokens to predict, V: vocabulary, E: embedding
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from finetune.losses import Losses


class Forward(Protocol):
    """A model in training with its losses, an nn.Module: all that the trainer asks of a captioner or a student."""

    captions: bool  # it has a caption loss
    contrasts: bool  # it has losses that compare the pictures of a whole batch
    weights: dict[str, float]  # of its losses, by name: "caption", and those of `batch_losses`
    pad_id: int | None  # what fills token ids up, where it captions

    @property
    def model(self) -> nn.Module:
        """The model whose weights learn."""
        ...

    @property
    def depth(self) -> Callable[[str], int] | None:
        """How deep a weight lies, by its name, 0 at the top."""
        ...

    def products(self) -> AbstractContextManager:
        """The context in which a step is made."""
        ...

    def forward(self, images: Any, tokens: Tensor, /) -> dict[str, Tensor]:
        """What it says of pictures, as the set gives them, and token ids (B, K, L).

        Where it captions, `logits` (T, V) and `labels` (T,) of all tokens that count; where it contrasts, `image_features`
        (B, E) and `text_features` (B, K, E) of unit length, and `logit_scale`, not logarithmic.
        """
        ...

    def batch_losses(
        self, image: Tensor, text: Tensor, logit_scale: Tensor, pictures: Tensor, **embeddings: Tensor
    ) -> Losses:
        """The losses of a whole batch's features (N, E) and (N, K, E), where it contrasts, and numbers for the log.

        pictures (N,): their numbers in the set. embeddings: what the set's batches have beside pictures and tokens. A number that
        `weights` does not name is only told; where it is NaN there is nothing to tell.
        """
        ...

    def prepare(self, pictures: Any, accelerator: Accelerator, config: Any, /) -> None:
        """Called once before the first step, in every process; may replace what the set gives of a picture."""

    def clamp(self) -> None:
        """Called after each step: keeps weights within their bounds."""

    def written(self) -> Any:
        """What is to be validated and saved, as the weights are now."""
