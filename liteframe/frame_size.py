"""At which size a model sees a frame: one rule for training, answering, exports and servers.

This file travels inside exported models: it imports nothing else.
"""

from fractions import Fraction
from functools import lru_cache

# squash: to a fixed size, whatever the aspect ratio (InternVL). crop: the fixed size is covered, and its center is cut
# out (most timm models). aspect: in the frame's own aspect ratio, with as many pixels as the fixed size has at most.
RESIZE_MODES = ("squash", "crop", "aspect")


@lru_cache(4096)
def frame_size(
    height: int, width: int, size: tuple[int, int], resize: str, multiple: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Height and width in pixels to which a frame is brought.

    In its own aspect ratio ("aspect"), both are multiples of `multiple`, with no more pixels than `size` has. Of the
    sizes that leave no room for a further row or for a further column of tokens, that is taken whose aspect ratio is
    nearest; it fills more than half of the budget, mostly nine tenths. Whole numbers decide, so that every machine
    finds the same size; a frame that has one of these sizes keeps it.

    Args:
        height: of the frame as it is shown, in pixels.
        width: of the frame as it is shown, in pixels.
        size: (height, width) of what the model was made for.
        resize: one of RESIZE_MODES.
        multiple: pixels that one token stands for, (down, across): patch x stride x what a VLM's projector merges.

    Raises:
        ValueError: the mode is unknown, the frame has no pixels, or one side would be shorter than one token.
    """
    if resize not in RESIZE_MODES:
        raise ValueError(f"resize is {resize!r}; choose one of {', '.join(RESIZE_MODES)}")
    if height < 1 or width < 1:
        raise ValueError(f"a frame of {height}x{width} pixels (height x width) has no pixels")
    if resize != "aspect":
        return size
    budget, (down, across) = size[0] * size[1], multiple
    # Squares of the exact sides, in tokens.
    if budget * height < width * down**2 or budget * width < height * across**2:
        raise ValueError(
            f"frames of {height}x{width} pixels (height x width) are too elongated for {size[0]}x{size[1]} pixels: in "
            f"their own aspect ratio one side would be shorter than a token, which stands for {down}x{across}; cut the "
            "frames into parts, take a larger image_size, or an encoder with resize 'squash'"
        )
    tokens = budget // (down * across)
    grids = [(n, tokens // n) for n in range(1, tokens + 1)] + [(tokens // n, n) for n in range(1, tokens + 1)]

    def distance(grid: tuple[int, int]) -> tuple[Fraction, int]:
        ours, theirs = grid[1] * across * height, grid[0] * down * width
        return Fraction(max(ours, theirs), min(ours, theirs)), -grid[0] * grid[1]

    rows, columns = min(grids, key=distance)
    return rows * down, columns * across


def covering_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels to which a frame is brought before the center is cut out ("crop"): it covers `size`.

    The longer side is cut to whole pixels, not rounded, as torchvision's Resize does, and timm's with it.
    """
    if size[0] * width >= size[1] * height:
        return size[0], width * size[0] // height
    return height * size[1] // width, size[1]


def center_cut(height: int, width: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the center of a frame that covers `size`, where torchvision's center_crop has it."""
    top, left = (round((whole - part) / 2) for whole, part in zip((height, width), size, strict=True))
    return slice(top, top + size[0]), slice(left, left + size[1])
