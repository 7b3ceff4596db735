"""Where a reduced prediction starts: the modes that move, their moments, and what drives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.pairs import PairSpace
from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.dynamics.moments.variances import BulkState
from sgdsde.sgd import SGD

STILL = 1e-10
"""Modes that move by less than this share of themselves over the whole horizon are taken as immovable."""

NOTHING = 1e-12
"""Relative length of an immovable residual that is rounding."""

MATRICES = 120
"""Packed matrices that a model holds at most: sixty directions, and as many resolvents."""

MATRICES_WITH_BUFFER = 350
"""The same with momentum, where both families are kept and a resolvent has three blocks."""


@dataclass(frozen=True, eq=False)
class ReducedStart:
    """Moments of the moving modes, and coordinates of the others.

    Attributes:
        moving: [modes], which modes move within the horizon. still: [modes - r, k], the coordinates of the others.
    """

    sources: Sources
    moving: Tensor
    still: Tensor

    @classmethod
    def of(
        cls,
        modes: Modes,
        sgd: SGD,
        mean: Tensor,
        covariance: Tensor | None,
        *,
        time: float,
        bulk: BulkState | None = None,
    ) -> ReducedStart:
        """From mean [modes, k], covariance [modes, modes] and what the bulk has, over this sum of learning rates.

        Raises:
            MemoryError: the matrices of the model do not fit; names the bytes.
        """
        moving = torch.ones_like(modes.drift, dtype=torch.bool)
        if not sgd.weight_decay:
            moving = 2 * time * modes.drift > STILL
        if not bool(moving.any()):
            moving[-1] = True
        fixed = modes.residual(torch.where(moving[:, None], 0.0, mean))
        space = PairSpace(modes.drift[moving], modes.vectors[:, moving].contiguous(), modes.n_outputs)
        _check_memory(space, MATRICES_WITH_BUFFER if sgd.momentum else MATRICES)
        m, root = mean[moving], space.drift.rsqrt()[:, None]
        moment = space.products(root * m, root * m)
        if covariance is not None:
            moment += space.pack(covariance[moving][:, moving] * root * root.mT)
        is_fixed = float(fixed.norm()) > NOTHING * float(modes.residual(modes.start).norm())
        sources = Sources(
            space,
            moment=moment,
            mean=m,
            fixed=fixed if is_fixed else None,
            offset=sgd.weight_decay * modes.decay_offset()[moving] if sgd.weight_decay else None,
            label_variance=modes.n_columns * sgd.label_noise_std**2,
            bulk=bulk,
        )
        return cls(sources, moving, mean[~moving])

    @property
    def nothing_moves(self) -> bool:
        """The residual is already all that never moves."""
        return not bool(self.sources.moment.any())

    def all_modes(self, mean: Tensor) -> Tensor:
        """Coordinates of all modes, [modes, k], from those of the moving ones."""
        whole = mean.new_empty(len(self.moving), mean.shape[1])
        whole[self.moving], whole[~self.moving] = mean, self.still
        return whole

    def all_pairs(self, covariance: Tensor) -> Tensor:
        """A covariance over all modes, [modes, modes], from that of the moving ones."""
        if bool(self.moving.all()):
            return covariance
        whole = covariance.new_zeros(len(self.moving), len(self.moving))
        places = self.moving.nonzero().flatten()
        whole[places[:, None], places] = covariance
        return whole


def _check_memory(space: PairSpace, matrices: int) -> None:
    needed = matrices * space.size * space.rows.element_size()
    allowed = _memory.budget(None, space.rows.device)
    if needed > allowed:
        raise MemoryError(complaint("memory", f"at least {needed:,} bytes", f"{allowed:,}"))
