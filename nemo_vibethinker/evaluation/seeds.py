"""Seeds for requests to servers."""

import hashlib


def request_seed(*parts: object) -> int:
    """30 bits from any printable parts, as some servers take no larger seed; the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 2
