"""When the closure says that it is not to be trusted: by the share of the gradient that no linear map explains."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sgdsde.dynamics import GaussianClosure
from sgdsde.dynamics.gaussian_closure import DOUBTFUL, DOUBTFUL_SHUFFLED, ClosureWarning, CurvedShare


class Unknown(GaussianClosure):
    """Refuses without looking for another dynamics."""


def seen(share: float, seed: int = 0) -> SimpleNamespace:
    """Of three examples with two outputs: E r E r^T + G S G is all but this share of E r r^T."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    gradient, hessian, root = normal(3, 2), normal(3, 2, 2), normal(3, 2, 2)
    hessian, blocks = hessian + hessian.mT, root @ root.mT
    linear = gradient[:, :, None] * gradient[:, None, :] + hessian @ blocks @ hessian
    total = linear.diagonal(dim1=1, dim2=2).sum()
    moment = linear + share / (1 - share) * total / 6 * torch.eye(2, dtype=torch.float64)
    return SimpleNamespace(
        blocks=blocks, moments=SimpleNamespace(gradient=gradient, hessian=hessian, gradient_moment=moment)
    )


def told(shares: list[float], doubtful: float) -> list[str]:
    watch = CurvedShare(Unknown())
    for k, share in enumerate(shares):
        watch.see(k, seen(share, k))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.warn(doubtful)
    assert all(one.category is ClosureWarning for one in caught)
    return [str(one.message) for one in caught]


def test_the_largest_share_is_told_with_its_step():
    (message,) = told([0.01, 0.2, 0.1], DOUBTFUL)
    assert "at step 1 a share of 0.2 of" in message
    assert "expect an error of 20 % or more" in message, "as many percent as a share of 0.03 has threes"
    assert told([0.01, 0.02], DOUBTFUL) == []


@pytest.mark.parametrize(("doubtful", "bound"), [(DOUBTFUL, 0.03), (DOUBTFUL_SHUFFLED, 0.015)])
def test_it_is_doubtful_from_three_percent_on_and_half_of_that_in_shuffled_epochs(doubtful, bound):
    assert told([0.98 * bound], doubtful) == []
    assert len(told([1.02 * bound], doubtful)) == 1


def test_beyond_one_half_nothing_is_predicted():
    CurvedShare(Unknown()).see(3, seen(0.499))
    with pytest.raises(ValueError, match=r"Unknown cannot represent .* at step 3 a share of 0\.501 .*0\.5 at most"):
        CurvedShare(Unknown()).see(3, seen(0.501))


def test_without_a_spread_or_a_gradient_there_is_nothing_to_see():
    watch = CurvedShare(GaussianClosure())
    watch.see(0, SimpleNamespace(blocks=None))
    nothing = torch.zeros(3, 2, 2).double()
    zero = SimpleNamespace(gradient=nothing[:, 0], hessian=nothing, gradient_moment=nothing)
    watch.see(0, SimpleNamespace(blocks=nothing, moments=zero))
    watch.warn(DOUBTFUL)
    broken = seen(0.1)
    broken.blocks[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="must stay finite, got NaN or infinity at step 7"):
        watch.see(7, broken)
