"""What a step costs by arithmetic: tokens, floating-point operations and bytes as functions of P, G and C.

Of one prompt, with a decoder of L layers, width D (queries as wide), K of N key heads, n parameters in products and a
vocabulary V, in numbers of four bytes:

                        shared prefix                      a sequence for each completion
  tokens of a pass      P + G C                            G (P + C)
  pairs of attention    P^2 / 2 + G C (P + C / 2)          G (P + C)^2 / 2
  operations of a pass  2 n tokens + 4 L D pairs           likewise
  decoded token reads   n + V D + 2 L D K/N (P + G C / 2)  n + V D + 2 L D K/N G (P + C / 2)

A step is five passes (sampling, reference, and a gradient that costs three) and logits of G C tokens in each; sampling
takes C times the bytes of a decoded token, and the prompts of a step read the weights together.
"""

from __future__ import annotations

import dataclasses

from benchmarks.throughput.work import Work
from mecap_jax.model_config import DecoderConfig

_PASSES = 5  # sampling, reference, forward, and twice that backward
_WIDTH = 4  # bytes of a number


@dataclasses.dataclass(frozen=True)
class Cost:
    """A step's tokens in one pass, floating-point operations in all, and bytes that sampling reads."""

    tokens: float
    operations: float
    bytes: float


def cost(work: Work, decoder: DecoderConfig, shared: bool) -> Cost:
    """What a step costs with a prefix that is shared by its group, or with a sequence for each completion."""
    p, g, c = work.prompt_tokens, work.group, work.completion_tokens
    layers, width = decoder.num_hidden_layers, decoder.num_attention_heads * decoder.head_dim
    keys = decoder.num_key_value_heads * decoder.head_dim
    head = decoder.vocab_size * decoder.hidden_size
    weights = layers * decoder.hidden_size * (2 * width + 2 * keys + 3 * decoder.intermediate_size)
    if shared:
        tokens, pairs, cached = p + g * c, p**2 / 2 + g * c * (p + c / 2), p + g * c / 2
    else:
        tokens, pairs, cached = g * (p + c), g * (p + c) ** 2 / 2, g * (p + c / 2)
    once = 2 * weights * tokens + 4 * layers * width * pairs + 2 * head * g * c
    read = c * (weights + head + work.prompts * 2 * layers * keys * cached)
    return Cost(work.prompts * tokens, work.prompts * _PASSES * once, _WIDTH * read)
