"""Which slots the memories of whole slots keep, by hand and by counting; what a command line names."""

import pytest
import torch

from liteframe.answer.memory import memories, parse_memory
from liteframe.reduce.base import Tokens


def slots(first, count, tokens=2):
    """Slots of 4 frames, each with the number of the slot in its tokens."""
    numbers = torch.arange(first, first + count).repeat_interleave(tokens)
    lines = [(4 * slot, 4 * slot + 3, tokens) for slot in range(first, first + count)]
    ones = torch.ones(len(numbers))
    return Tokens(numbers[:, None].float(), 4 * numbers, torch.arange(tokens).repeat(count), ones, lines)


def kept(memory):
    shown = memory.context("")
    assert shown.tokens[::2, 0].tolist() == [first // 4 for first, _, _ in shown.slots]
    return [first // 4 for first, _, _ in shown.slots]


def test_halving_keeps_multiples_of_its_stride():
    memory, seen = memories["halving"](8), []
    for slot in range(12):
        memory.add(slots(slot, 1))
        seen.append(kept(memory))
    assert seen[3:5] == [[0, 1, 2, 3], [0, 2, 4]]
    assert seen[6] == seen[7] == [0, 2, 4, 6]
    assert seen[8] == seen[11] == [0, 4, 8]


def test_a_window_holds_the_newest():
    memory = memories["window"](7)
    memory.add(slots(0, 5))
    assert kept(memory) == [2, 3, 4]
    memory.add(slots(5, 1))
    assert kept(memory) == [3, 4, 5]
    assert memory.context("").tokens.untyped_storage().nbytes() == 4 * 6  # not that of the clip it came with


def test_every_slot_is_as_likely_to_be_kept():
    counts = torch.zeros(10)
    for seed in range(400):
        memory = memories["random"](6, seed=seed)
        memory.add(slots(0, 10))
        assert kept(memory) == sorted(kept(memory))
        counts[kept(memory)] += 1
    assert counts.sum() == 1200
    expected, deviation = 120, (400 * 0.3 * 0.7) ** 0.5
    assert (counts - expected).abs().max() < 3.5 * deviation
    again = memories["random"](6, seed=399)
    again.add(slots(0, 3))
    again.add(slots(3, 7))
    assert kept(again) == kept(memory)


def test_slots_that_do_not_fit_change_nothing():
    memory = memories["window"](4)
    memory.add(slots(0, 2))
    with pytest.raises(ValueError, match="below one slot of this model, which has 5"):
        memory.add(slots(2, 1, tokens=5))
    assert kept(memory) == [0, 1]


def test_a_command_line_names_a_memory():
    memory = parse_memory("window:64")
    assert (memory.name, memory.budget) == ("window", 64)
    assert parse_memory("all").budget is None
    for text, message in (
        ("windows:64", r"there is no memory 'windows'; expected one of all, window"),
        ("all:64", r"takes no budget; give --memory all"),
        ("window", r"needs a budget in tokens, such as --memory window:4096"),
        ("window:1e3", r"needs a budget in tokens"),
        ("window:0", r"a budget of 0 tokens keeps nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_memory(text)
