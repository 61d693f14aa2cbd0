"""Random numbers that depend on (seed, epoch, example) and on nothing else.

NumPy's Philox generator is counter-based: block c of the stream with key (seed, epoch) can be had
without the blocks before it. Each example owns a fixed range of counters, so one example's
numbers can be drawn alone, or those of a whole epoch at once, with the same result.
"""

import functools
import math

import numpy as np

_BEYOND_EXAMPLES = 2**192  # a part of the stream that no example owns
_PER_BLOCK = 4  # Philox-4x64 gives four 64-bit numbers, hence four doubles, per counter
LARGEST_ORDER = 2**24  # examples; an order of more takes 8 bytes each, and seconds for each epoch
_ROUNDS = 8


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


def ordered(seed: int, epoch: int, num_examples: int, start: int, stop: int) -> np.ndarray:
    """Entries start … stop − 1 of an order of 0 … num_examples − 1 that depends on (seed, epoch).

    Of `order`, or beyond `LARGEST_ORDER` examples of the one whose entries `shuffled` gives.
    """
    if num_examples <= LARGEST_ORDER:
        return order(seed, epoch, num_examples)[start:stop]
    return shuffled(seed, epoch, num_examples, np.arange(start, stop))


def shuffled(seed: int, epoch: int, num_examples: int, places: np.ndarray) -> np.ndarray:
    """What stands at `places` of an order, as `order`, that is never held: a cipher of the place.

    A place is cut into two digits, left below a = ⌈√n⌉ and right below b = ⌈n/a⌉. Rounds add to
    either of them, in turns, a hash of the other, which could be taken back: a Feistel network, a
    permutation of a·b ≥ n numbers. What comes out at n or above goes in again until it is below.
    Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    """
    a = math.isqrt(num_examples - 1) + 1
    sizes = np.array([a, -(-num_examples // a)], np.uint64)
    generator = np.random.Philox(key=_key(seed, epoch), counter=_BEYOND_EXAMPLES)
    keys = generator.random_raw(_ROUNDS)
    found = _encrypted(places.astype(np.uint64), *sizes, keys)
    while (outside := found >= num_examples).any():
        found[outside] = _encrypted(found[outside], *sizes, keys)
    return found.astype(np.int64)


def _encrypted(numbers, a, b, keys):
    left, right = np.divmod(numbers, b)
    for first, second in keys.reshape(-1, 2):
        left = (left + _hash(right ^ first) % a) % a
        right = (right + _hash(left ^ second) % b) % b
    return left * b + right


def _hash(numbers):
    """64 bits of each, all of which depend on all of the number: the end of SplitMix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _key(seed: int, epoch: int) -> np.ndarray:
    return np.array([seed, epoch], np.uint64)
