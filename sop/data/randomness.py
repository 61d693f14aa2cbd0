"""Random numbers that depend on (seed, epoch, example) and on nothing else.

NumPy's Philox generator is counter-based: block c of the stream with key (seed, epoch) can be had
without the blocks before it. Each example owns a fixed range of counters, so one example's
numbers can be drawn alone, or those of a whole epoch at once, with the same result.
"""

import functools

import numpy as np

_BEYOND_EXAMPLES = 2**192  # a part of the stream that no example owns
_PER_BLOCK = 4  # Philox-4x64 gives four 64-bit numbers, hence four doubles, per counter


def uniforms(seed: int, epoch: int, example: int, count: int) -> np.ndarray:
    """[count] float64 in [0, 1): the random numbers of one example in one epoch."""
    blocks = -(-count // _PER_BLOCK)
    generator = np.random.Philox(key=_key(seed, epoch), counter=example * blocks)
    return np.random.Generator(generator).random(count)


@functools.lru_cache(maxsize=4)  # around the end of an epoch, in training and in evaluation
def epoch_uniforms(seed: int, epoch: int, num_examples: int, count: int) -> np.ndarray:
    """[num_examples, count] float64: row i equals `uniforms(seed, epoch, i, count)`."""
    blocks = -(-count // _PER_BLOCK)
    generator = np.random.Generator(np.random.Philox(key=_key(seed, epoch)))
    return generator.random((num_examples, blocks * _PER_BLOCK))[:, :count]


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The indices 0 … num_examples − 1 in an order that depends on (seed, epoch)."""
    generator = np.random.Philox(key=_key(seed, epoch), counter=_BEYOND_EXAMPLES)
    return np.random.Generator(generator).permutation(num_examples)


def _key(seed: int, epoch: int) -> np.ndarray:
    return np.array([seed, epoch], np.uint64)
