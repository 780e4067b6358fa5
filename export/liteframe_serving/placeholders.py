"""Where the features of videos and images stand in a prompt's token ids."""

from itertools import islice


def runs(ids: list[int], token: int, counts: list[int]) -> list[list[tuple[int, int]]]:
    """For each item the runs of its image tokens, as (first, last) positions, both included.

    Args:
        ids: the prompt's token ids.
        token: the image token.
        counts: image tokens of each item, in the order of the prompt.

    Raises:
        ValueError: the prompt holds another number of image tokens than all items together.
    """
    places = [i for i, value in enumerate(ids) if value == token]
    if len(places) != sum(counts):
        raise ValueError(f"the prompt holds {len(places)} image tokens, but its videos and images take {sum(counts)}")
    remaining = iter(places)
    found = []
    for count in counts:
        mine: list[tuple[int, int]] = []
        for place in islice(remaining, count):
            if mine and mine[-1][1] == place - 1:
                mine[-1] = (mine[-1][0], place)
            else:
                mine.append((place, place))
        found.append(mine)
    return found
