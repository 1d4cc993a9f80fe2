"""The Triton kernels against what they stand for, run by Triton's interpreter on the CPU: started by test_kernels.py, which sets it up."""

import torch

from captioners.base import SamplingConfig
from captioners.coca.block_kernels import add_norm, attend_cached, attend_images, place
from captioners.decoding.choice_kernel import choose_by_kernel
from captioners.decoding.sampling import choose, exponentials, race_side, sample_key

PAD, START, END = 0, 1, 2


def choices(vocabulary: int, rows: int, spread: float, sampling: SamplingConfig, dtype=torch.float32):
    """What the kernel chooses, and what the CPU does, of the same logits with the same draws."""
    generator = torch.Generator().manual_seed(vocabulary + rows)
    logits = (spread * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
    logits[::3, END] += 3
    keys = torch.tensor([sample_key(7, f"picture {row}") for row in range(rows)])
    captions, lengths = torch.arange(rows) % 5, torch.arange(rows) % 9 + 1
    never = torch.tensor([PAD, START, *range(vocabulary - 30, vocabulary)])  # more than are read at a time
    given = logits.clone()
    ours = choose_by_kernel(
        given, given, sampling, keys=keys, draws=3 + captions, lengths=lengths, never=never, end_id=END
    )

    def noise(some, attempt):
        return exponentials(keys[some], 3 + captions[some], lengths[some], attempt, race_side(vocabulary))

    theirs = choose(
        logits.float(), torch.full((rows, 1), START), sampling, lengths=lengths, never=never, end_id=END, noise=noise
    )
    return ours, theirs


def check_choices() -> None:
    for vocabulary, rows, spread, values, dtype in (
        (300, 40, 2.0, {}, torch.float32),
        (300, 20, 2.0, {"top_p": 1.0, "temperature": 0.7}, torch.float32),
        (300, 10, 1.0, {"top_p": 0.02}, torch.float32),  # most rows are rejected eight times
        (257, 20, 4.0, {"top_p": 0.6, "temperature": 1.7, "min_length": 7}, torch.bfloat16),
        (49408, 1, 3.0, {}, torch.bfloat16),
    ):
        (tokens, logprobs), (expected, wanted) = choices(vocabulary, rows, spread, SamplingConfig(**values), dtype)
        assert torch.equal(tokens, expected), (vocabulary, values, (tokens != expected).sum())
        assert len(tokens.unique()) > rows // 10
        torch.testing.assert_close(logprobs, wanted, atol=1e-4, rtol=1e-5)
    nothing = torch.full((3, 40), float("-inf"))
    nothing[:, PAD] = 0.0  # which is never chosen
    same = {
        "never": torch.tensor([PAD]),
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
    """Rows of unequal length, heads of no power of two, hidden positions; the cache is written at the new position alone."""
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
        mask[0, 7] = float("nan")  # later ones are not looked at
        query, key, value = joint.view(rows, 3, heads, depth).unbind(1)
        wanted_keys, wanted_values = keys.clone(), values.clone()
        for row, position in enumerate(positions):
            wanted_keys[row, :, position], wanted_values[row, :, position] = key[row], value[row]
        expected = torch.stack(
            [
                torch.nn.functional.scaled_dot_product_attention(
                    query[row, :, None],
                    wanted_keys[row, :, : position + 1],
                    wanted_values[row, :, : position + 1],
                    mask[row, None, None, : position + 1] if hidden else None,
                )[:, 0].flatten()
                for row, position in enumerate(positions)
            ]
        )
        out = attend_cached(joint, keys, values, positions, mask if hidden else None)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(keys, wanted_keys) and torch.equal(values, wanted_values)


def check_attention_to_images() -> None:
    """Captions that are no power of two, more image tokens than are read at a time, and fewer."""
    generator = torch.Generator().manual_seed(0)
    for pictures, captions, heads, tokens, depth in ((3, 5, 2, 130, 16), (2, 1, 3, 7, 12), (1, 17, 1, 64, 32)):
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
        total, normed = add_norm(x, added, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(total, x + added)
        torch.testing.assert_close(normed, norm(x + added))
        total, normed = add_norm(x, None, norm.weight, norm.bias, norm.eps)
        assert total is x
        torch.testing.assert_close(normed, norm(x))


def check_place() -> None:
    joint, slots = torch.randn(3, 5, 2 * 4 * 6, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 0, 4])
    keys, values = torch.zeros(2, 6, 4, 5, 6)
    place(joint, torch.stack([slots, slots + 9], dim=1)[:, 0], keys, values)  # slots may be a column of a table
    for old, new in zip((keys, values), joint.chunk(2, dim=-1)):
        assert torch.equal(old[slots], new.unflatten(-1, (4, 6)).transpose(1, 2))
        assert not old[[1, 2, 5]].any()


if __name__ == "__main__":
    check_choices()
    check_attention()
    check_attention_to_images()
    check_norm()
    check_place()
    print("the kernels do what they stand for")
