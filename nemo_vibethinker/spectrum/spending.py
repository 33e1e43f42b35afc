"""What requests to a paid endpoint cost, and a limit that is not passed."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint counts them, over `requests` answered requests."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Self) -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars per million tokens. Raises ValueError for a negative price."""

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if not (self.prompt >= 0 and self.completion >= 0):
            raise ValueError(f"prices must not be negative, got {self.prompt} and {self.completion}")

    def cost(self, usage: Usage) -> float:
        """Dollars."""
        return (self.prompt * usage.prompt_tokens + self.completion * usage.completion_tokens) / 1e6


class Spending:
    """Running total of a job, what is still in flight at its highest price, and the limit for both together.

    Attributes:
        used: tokens of all answers so far, those of earlier attempts at the same job included.

    Raises ValueError for a limit without prices.
    """

    def __init__(self, prices: Prices | None = None, limit: float | None = None, used: Usage | None = None) -> None:
        if limit is not None and prices is None:
            raise ValueError("--max-cost needs --price-in and --price-out, dollars per million tokens")
        self.prices = prices
        self.limit = limit
        self.used = used or Usage()
        self._reserved = Usage()

    def reserve(self, most: Usage) -> bool:
        """Set aside the most that a request can use; False if the limit has no room for it now."""
        highest = self.used + self._reserved + most
        if self.limit is not None and self.prices is not None and self.prices.cost(highest) > self.limit:
            return False
        self._reserved += most
        return True

    def settle(self, most: Usage, used: Usage) -> None:
        """Replace what was set aside by what was used; a failed request is settled with `Usage()`."""
        self._reserved += Usage(-most.requests, -most.prompt_tokens, -most.completion_tokens)
        self.used += used

    def __str__(self) -> str:
        tokens = f"{self.used.prompt_tokens:,} prompt and {self.used.completion_tokens:,} completion tokens"
        return f"{tokens}, ${self.prices.cost(self.used):.4f}" if self.prices else tokens
