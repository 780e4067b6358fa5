"""Devices that share the tokens of a conversation: who reads which. That they learn what one device learns is tested
in tests/distributed."""

import pytest
import torch

from liteframe.models.vlm.context_parallel import columns_of


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_every_column_is_read_once_and_all_have_as_much_to_attend_to(devices):
    length = 2 * devices * 5
    shares = [columns_of(rank, devices, length) for rank in range(devices)]
    assert sorted(torch.cat(shares).tolist()) == list(range(length))
    assert all(share.tolist() == sorted(share.tolist()) for share in shares)
    # Keys that are seen from all columns of a device.
    assert len({int((share + 1).sum()) for share in shares}) == 1
