"""A hundred losses that a change of the code must not change, unless it is meant to.

Two versions of torch and two CPUs add in another order, so the losses cannot be the same to the bit. How far rounding
carries over 100 steps, as the largest relative deviation of a loss from the file (written with AVX-512, one thread):

    torch 2.11 and numpy 2.5 instead of 2.15 and 2.4          4e-9 (the file's digits)
    AVX2, no vector instructions, two threads                 1.3e-7
    without oneDNN                                            1.2e-6
    all first weights one unit in the last place off, 3 runs  1.2e-6
    float64 throughout                                        1.4e-6

and how far small mistakes carry: weight decay 0.04 for 0.05, 3e-4; beta2 0.951 for 0.95, 9e-4; 3.05 for 3 sigma, 1e-3;
learning rate 1 % higher, 9e-3. The tolerance lies between, a factor of 14 from either side.
"""

import json

from worlds.golden_run import GOLDEN, STEPS, golden_losses

TOLERANCE = 2e-5


def test_the_losses_are_those_of_the_file():
    expected = json.loads(GOLDEN.read_text())["losses"]
    losses = golden_losses()
    assert len(losses) == len(expected) == STEPS
    deviations = [abs(loss / wanted - 1) for loss, wanted in zip(losses, expected, strict=True)]
    first = next((step for step, deviation in enumerate(deviations) if deviation > TOLERANCE), None)
    assert first is None, (
        f"step {first}: loss {losses[first]:.9g}, was {expected[first]:.9g}; if that is meant, write the file anew: "
        "OMP_NUM_THREADS=1 python tests/worlds/golden_run.py --write, and say why in the commit"
    )
    assert losses[-1] < losses[0] / 3  # a run that learns nothing would guard nothing
