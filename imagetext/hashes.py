"""Numbers made of names, the same in every process and on every machine, unlike those of `hash`."""

from hashlib import blake2b


def name_hash(name: str, purpose: str = "", *, seed: int = 0, bits: int = 64) -> int:
    """So many bits of a name, evenly spread; those of another purpose (up to 16 bytes) or seed tell nothing of them."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=bits // 8, salt=seed.to_bytes(16, "little"),
                     person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")
