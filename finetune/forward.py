"""The interface between the trainer and a model in training.

`finetune.captioner.forward` and `finetune.student.model` implement it.

B: pictures in a part of a batch, N: pictures in the whole batch, K: captions of each picture, T: tokens to predict,
V: vocabulary size, E: embedding dimension
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from finetune.losses import Losses


class Forward(Protocol):
    """A captioner or a student in training, with its losses. Implementations are also an nn.Module."""

    captions: bool  # whether it has a caption loss
    contrasts: bool  # whether it has losses that compare the pictures of a whole batch
    weights: dict[str, float]  # the weight of each loss, by name: "caption", and those of `batch_losses`
    pad_id: int | None  # the token that captions are padded with, if it has a caption loss

    @property
    def model(self) -> nn.Module:
        """The model whose weights are trained."""
        ...

    @property
    def depth(self) -> Callable[[str], int] | None:
        """A function from a weight's name to its depth, 0 at the top; None if all weights learn at the same rate."""
        ...

    def products(self) -> AbstractContextManager:
        """Return the context in which each step runs, which may make matrix products faster."""
        ...

    def forward(self, images: Any, tokens: Tensor, /) -> dict[str, Tensor]:
        """Return the model's outputs for images, as the training set gives them, and token ids (B, K, L).

        With a caption loss: `logits` (T, V) and `labels` (T,) of all tokens to predict. With losses over the batch:
        `image_features` (B, E) and `text_features` (B, K, E) of unit length, and `logit_scale`, not logarithmic.
        """
        ...

    def batch_losses(
        self, image: Tensor, text: Tensor, logit_scale: Tensor, pictures: Tensor, **embeddings: Tensor
    ) -> Losses:
        """Return the losses over a whole batch's features (N, E) and (N, K, E), and further numbers for the log.

        pictures (N,): their indices in the set. embeddings: those of the set's batches. A number whose name is not in
        `weights` is only logged, and not even that if it is NaN.
        """
        ...

    def prepare(self, pictures: Any, accelerator: Accelerator, config: Any, /) -> None:
        """Called once in every process before the first step; may replace `pictures.image`."""

    def clamp(self) -> None:
        """Called after each step; keeps weights within their bounds."""

    def written(self) -> Any:
        """Return the captioner or student to validate and save, with the present weights."""
