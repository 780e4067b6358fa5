"""Orthogonal matrices whose entries all have the same size, where one is known (methods 18.1)."""

import torch
from torch import Tensor


def equalising_rotation(size: int) -> Tensor:
    """Float64 orthogonal [size,size]: Hadamard / sqrt(size), else a fixed random orthogonal matrix.

    A rotation with entries of equal size spreads any diagonal covariance evenly over the channels; a random one does so
    approximately.
    """
    matrix = hadamard(size)
    if matrix is not None:
        return matrix / size**0.5
    generator = torch.Generator().manual_seed(size)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def hadamard(size: int) -> Tensor | None:
    """Float64 matrix of +1 and -1 with H H^T = size I (Sylvester doubling of a Paley matrix), or None."""
    core, doublings = size, 0
    while core:
        seed = _paley(core)
        if seed is not None:
            for _ in range(doublings):
                seed = torch.cat([torch.cat([seed, seed], 1), torch.cat([seed, -seed], 1)])
            return seed
        if core % 2:
            return None
        core, doublings = core // 2, doublings + 1
    return None


def _paley(size: int) -> Tensor | None:
    """Order 1; q + 1 for a prime q = 3 mod 4 (Paley I); 2 (q + 1) for a prime q = 1 mod 4 (Paley II)."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _is_prime(size - 1) and size % 4 == 0:
        q = size - 1
        skew = torch.zeros(size, size, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return skew + torch.eye(size, dtype=torch.float64)
    q = size // 2 - 1
    if size % 4 == 0 and _is_prime(q) and q % 4 == 1:
        conference = torch.zeros(q + 1, q + 1, dtype=torch.float64)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(q)
        plus = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
        minus = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
        return torch.kron(conference, plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), minus)
    return None


def _jacobsthal(q: int) -> Tensor:
    """[q,q] with entry (i,j) the quadratic character of i - j modulo q."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    index = torch.arange(q)
    return character[(index[:, None] - index[None, :]) % q]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
