"""The command-line flags of work that asks an OpenAI-compatible endpoint."""

import argparse
import os
import sys
from collections.abc import Sequence

from nemo_vibethinker.spectrum.endpoint import Endpoint, Request
from nemo_vibethinker.spectrum.spending import Prices, Spending, Usage

BYTES_PER_TOKEN = 4  # of English and LaTeX, roughly; for estimates only


def add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the endpoint is, how hard to press it, and what it may cost."""
    group = parser.add_argument_group("endpoint")
    group.add_argument(
        "--base-url",
        default=os.environ.get("OPENAI_BASE_URL", ""),
        metavar="URL",
        help="of an OpenAI-compatible endpoint, such as http://localhost:8000/v1 (default: $OPENAI_BASE_URL)",
    )
    group.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key (default: %(default)s; servers without keys need none)",
    )
    group.add_argument("--concurrency", type=int, default=32, help="requests in flight (default: %(default)s)")
    group.add_argument("--timeout", type=float, default=600, help="seconds per attempt (default: %(default)s)")
    group.add_argument("--max-retries", type=int, default=5, help="further attempts, with back-off (%(default)s)")
    group.add_argument("--price-in", type=float, metavar="DOLLARS", help="per million prompt tokens")
    group.add_argument("--price-out", type=float, metavar="DOLLARS", help="per million completion tokens")
    group.add_argument(
        "--max-cost",
        type=float,
        metavar="DOLLARS",
        help="never pass this, earlier attempts at the same --out included; the same command with more goes on",
    )
    group.add_argument("--plan", action="store_true", help="print what would be asked and its cost, and stop")


def endpoint_of(options: argparse.Namespace) -> Endpoint:
    """The endpoint that the flags name. ValueError for a flag that does not fit."""
    return Endpoint(
        options.base_url,
        options.model,
        api_key=os.environ.get(options.api_key_env, ""),
        concurrency=options.concurrency,
        timeout_s=options.timeout,
        max_retries=options.max_retries,
    )


def spending_of(options: argparse.Namespace, used: Usage) -> Spending:
    """A running total that starts at `used`. ValueError for one price without the other, or a limit without prices."""
    if (options.price_in is None) != (options.price_out is None):
        raise ValueError("give both --price-in and --price-out, dollars per million tokens")
    prices = None if options.price_in is None else Prices(options.price_in, options.price_out)
    return Spending(prices, options.max_cost, used)


def print_estimate(name: str, requests: Sequence[Request], spending: Spending) -> None:
    """To standard error: the number of requests, and tokens and dollars at most, if every answer fills its limit."""
    prompt_tokens = sum(len(request.text.encode("utf-8", "surrogatepass")) for request in requests) // BYTES_PER_TOKEN
    most = Usage(len(requests), prompt_tokens, sum(request.n * request.max_tokens for request in requests))
    cost = f", ${spending.prices.cost(most):.2f}" if spending.prices else ""
    print(
        f"{name}: {len(requests):,} requests, about {prompt_tokens:,} prompt tokens and "
        f"at most {most.completion_tokens:,} completion tokens{cost}; so far {spending}",
        file=sys.stderr,
    )
