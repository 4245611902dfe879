"""Takes a sample of the rows of a large data file, from places spread evenly over it."""

from collections.abc import Iterable
from math import ceil

from sft.data.row_blocks import Block

PLACES = 32  # blocks that the sample is taken from, at least, if there are so many
SAMPLE_ROWS = 2000


def sample_blocks(blocks: Iterable[Block]) -> list[Block]:
    """The first rows of up to 2 * PLACES blocks, evenly spaced, in order: about SAMPLE_ROWS in all."""
    kept: list[Block] = []
    stride = 1
    for number, block in enumerate(blocks):
        if number % stride == 0:
            kept.append(block)
            if len(kept) == 2 * PLACES:
                kept, stride = kept[::2], 2 * stride
    return [block.head(ceil(SAMPLE_ROWS / len(kept))) for block in kept]
