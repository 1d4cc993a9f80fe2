"""Compares the Triton kernels with plain torch, in Triton's interpreter on the CPU; started by test_kernels.py."""

import torch

from captioners.base import SamplingConfig
from captioners.coca.block_kernels import add_norm, attend_cached, attend_images, write_keys_values
from captioners.decoding.choice_kernel import choose_by_kernel
from captioners.decoding.sampling import choose, exponentials, race_side, sample_key

PAD, START, END = 0, 1, 2


def choices(vocabulary: int, rows: int, spread: float, sampling: SamplingConfig, dtype=torch.float32):
    """The choices of the kernel and of the CPU's code, from the same logits with the same random draws."""
    generator = torch.Generator().manual_seed(vocabulary + rows)
    logits = (spread * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
    logits[::3, END] += 3
    keys = torch.tensor([sample_key(7, f"picture {row}") for row in range(rows)])
    captions, lengths = torch.arange(rows) % 5, torch.arange(rows) % 9 + 1
    banned = torch.tensor([PAD, START, *range(vocabulary - 30, vocabulary)])  # more than are read at a time
    copy = logits.clone()
    actual = choose_by_kernel(
        copy, copy, sampling, keys=keys, draws=3 + captions, lengths=lengths, banned=banned, end_id=END
    )

    def noise(rows, attempt):
        return exponentials(keys[rows], 3 + captions[rows], lengths[rows], attempt=attempt, side=race_side(vocabulary))

    sequences = torch.full((rows, 1), START)
    expected = choose(logits.float(), sequences, sampling, lengths=lengths, banned=banned, end_id=END, noise=noise)
    return actual, expected


def check_choices() -> None:
    for vocabulary, rows, spread, values, dtype in (
        (300, 40, 2.0, {}, torch.float32),
        (300, 20, 2.0, {"top_p": 1.0, "temperature": 0.7}, torch.float32),
        (300, 10, 1.0, {"top_p": 0.02}, torch.float32),  # most rows are rejected eight times
        (257, 20, 4.0, {"top_p": 0.6, "temperature": 1.7, "min_length": 7}, torch.bfloat16),
        (49408, 1, 3.0, {}, torch.bfloat16),
    ):
        (tokens, logprobs), (expected_tokens, expected_logprobs) = choices(
            vocabulary, rows, spread, sampling=SamplingConfig(**values), dtype=dtype
        )
        assert torch.equal(tokens, expected_tokens), (vocabulary, values, (tokens != expected_tokens).sum())
        assert len(tokens.unique()) > rows // 10
        torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-4, rtol=1e-5)
    nothing = torch.full((3, 40), float("-inf"))
    nothing[:, PAD] = 0.0  # the only possible token is banned
    same = {
        "banned": torch.tensor([PAD]),
        "end_id": END,
        "keys": torch.zeros(3, 2, dtype=torch.long),
        "draws": torch.arange(3),
        "lengths": torch.full((3,), 9),
    }
    tokens, _ = choose_by_kernel(nothing.clone(), nothing, SamplingConfig(), **same)
    assert tokens.tolist() == [END] * 3
    nothing[:, PAD], nothing[1, 5] = 0.0, float("nan")
    assert choose_by_kernel(nothing, nothing, SamplingConfig(), **same)[1].isnan().tolist() == [False, True, False]


def check_attention() -> None:
    """Rows of unequal length, a head width that is no power of two, hidden positions.

    The cache must be written at the new position only.
    """
    rows, heads, depth, limit = 6, 3, 12, 40
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    for hidden in (False, True):
        joint, keys, values = (
            random(rows, 3 * heads * depth),
            random(rows, heads, limit, depth),
            random(rows, heads, limit, depth),
        )
        positions, mask = torch.tensor([0, 1, 31, 32, 33, 39]), torch.zeros(rows, limit + 1)
        mask[3, 5] = mask[4, 33] = float("-inf")  # a cached position, and the new one itself
        mask[0, 7] = float("nan")  # later positions must not be read
        query, key, value = joint.view(rows, 3, heads, depth).unbind(1)
        expected_keys, expected_values = keys.clone(), values.clone()
        for row, position in enumerate(positions):
            expected_keys[row, :, position], expected_values[row, :, position] = key[row], value[row]
        expected = torch.stack(
            [
                torch.nn.functional.scaled_dot_product_attention(
                    query[row, :, None],
                    expected_keys[row, :, : position + 1],
                    expected_values[row, :, : position + 1],
                    mask[row, None, None, : position + 1] if hidden else None,
                )[:, 0].flatten()
                for row, position in enumerate(positions)
            ]
        )
        out = attend_cached(joint, keys, values, positions=positions, mask=mask if hidden else None)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(keys, expected_keys) and torch.equal(values, expected_values)


def check_attention_to_images() -> None:
    """Numbers of captions that are no powers of two, and more than one program computes; tokens for several blocks."""
    generator = torch.Generator().manual_seed(0)
    for pictures, captions, heads, tokens, depth in (
        (3, 5, 2, 130, 16),
        (2, 1, 3, 7, 12),
        (1, 17, 1, 64, 32),
        (2, 70, 1, 20, 64),
    ):
        queries = torch.randn(pictures * captions, heads * depth, generator=generator)
        keys, values = torch.randn(2, pictures, heads, tokens, depth, generator=generator)
        expected = (
            torch.nn.functional.scaled_dot_product_attention(
                queries.view(pictures, captions, heads, depth).transpose(1, 2), keys, values
            )
            .transpose(1, 2)
            .reshape(queries.shape)
        )
        torch.testing.assert_close(attend_images(queries, keys, values), expected, atol=1e-5, rtol=1e-5)


def check_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    x, added = torch.randn(2, 3, 4, 20, generator=generator)
    norm = torch.nn.LayerNorm(20)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        total, normed = add_norm(x, added, norm.weight, bias=norm.bias, epsilon=norm.eps)
        torch.testing.assert_close(total, x + added)
        torch.testing.assert_close(normed, norm(x + added))
        total, normed = add_norm(x, None, norm.weight, bias=norm.bias, epsilon=norm.eps)
        assert total is x
        torch.testing.assert_close(normed, norm(x))


def check_writing_of_keys_and_values() -> None:
    joint, slots = torch.randn(3, 5, 2 * 4 * 6, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 0, 4])
    keys, values = torch.zeros(2, 6, 4, 5, 6)
    column_of_table = torch.stack([slots, slots + 9], dim=1)[:, 0]  # not contiguous
    write_keys_values(joint, column_of_table, keys, values=values)
    for cached, part in zip((keys, values), joint.chunk(2, dim=-1)):
        assert torch.equal(cached[slots], part.unflatten(-1, (4, 6)).transpose(1, 2))
        assert not cached[[1, 2, 5]].any()


if __name__ == "__main__":
    check_choices()
    check_attention()
    check_attention_to_images()
    check_norm()
    check_writing_of_keys_and_values()
    print("the kernels agree with their references")
