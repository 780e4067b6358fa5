import torch

from liteframe.distill.panel import clip_panel, pca_colors


def test_layout_of_the_picture():
    frames = torch.rand(8, 3, 16, 24)
    weights = torch.rand(8, 4, 6)
    target, student = torch.randn(2, 2, 3, 7), torch.randn(2, 2, 3, 7)
    picture = clip_panel(frames, weights, target, student)
    assert picture.shape == (3, 64, 48)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert torch.equal(picture[:, :16, 24:], frames[4])
    brightest = weights[4].flatten().argmax().item()
    y, x = divmod(brightest, 6)
    assert (picture[:, 16 + 4 * y, 24 + 4 * x] == 1).all()


def test_equal_tokens_have_equal_colors():
    target = torch.randn(2, 3, 3, 9)
    ours, theirs = pca_colors(target, target.clone())
    assert torch.equal(ours, theirs)
    other = pca_colors(target, torch.randn(2, 3, 3, 9))
    assert not torch.allclose(other[0], other[1])
    assert pca_colors(target[:1, :1, :1], target[:1, :1, :1])[0].shape == (1, 3, 1, 1)
