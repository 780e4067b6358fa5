"""Comparison of saved states: nested containers of tensors and plain values."""

import torch
from torch.utils._pytree import tree_flatten_with_path, tree_structure


def assert_same_state(expected, state):
    """The same containers with the same leaves; tensors have the same type and the same bits."""
    assert tree_structure(expected) == tree_structure(state)
    for (path, ours), (_, theirs) in zip(
        tree_flatten_with_path(expected)[0], tree_flatten_with_path(state)[0], strict=True
    ):
        assert type(ours) is type(theirs), path
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == theirs.dtype, path
            assert torch.equal(ours, theirs), path
        else:
            assert ours == theirs, path
