"""Second moments of the minibatch gradient in output space, from the second moment of the output gradients."""

from __future__ import annotations

from torch import Tensor

from sgdsde._types import Sampling
from sgdsde.sgd import sampling_factor


def block_diagonal(matrix: Tensor, n_outputs: int) -> Tensor:
    """D(M): the n diagonal c x c blocks of a matrix [n*c, n*c], everything else zero.

    Cost: n c^2 numbers read, a zero matrix of d^2 written.
    """
    blocks = diagonal_blocks(matrix, n_outputs)
    result = matrix.new_zeros(matrix.shape)
    diagonal_blocks(result, n_outputs).copy_(blocks)
    return result


def diagonal_blocks(matrix: Tensor, n_outputs: int) -> Tensor:
    """A view of the diagonal blocks of a matrix [n*c, n*c]: [n, c, c]."""
    n = matrix.shape[0] // n_outputs
    return matrix.view(n, n_outputs, n, n_outputs).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def residual_covariance(second_moment: Tensor, n_train: int) -> Tensor:
    """C(r) averaged over r: covariance of one example's output gradient, placed at its index among n.

        C = blockdiag(S)/n - S/n^2,   S = E[r r^T]

    Args:
        second_moment: S, [n*c, n*c], sample-major. For one known r pass its outer product.
    Returns:
        [n*c, n*c]; its row sums over examples vanish when S = r r^T.
    Source: theory in docs/derivations.md; tests/laws/test_noise_by_enumeration.py.
    """
    return block_diagonal(second_moment, second_moment.shape[0] // n_train) / n_train - second_moment / n_train**2


def output_noise(
    kernel: Tensor, second_moment: Tensor, *, n_train: int, batch_size: int, sampling: Sampling = "with_replacement"
) -> Tensor:
    """Covariance of one minibatch gradient, pushed forward to the outputs.

    The gradient of example i is J_i^T r_i, so the covariance depends on the output gradients only through their second
    moment S = E[r r^T]:

        Q(S) = (phi/B) K (blockdiag(S)/n - S/n^2) K

    Args:
        kernel: K = J J^T, [n*c, n*c], sample-major; or K(rows, train), [m*c, n*c], for the outputs of other examples.
        second_moment: S, [n*c, n*c].
        n_train, batch_size, sampling: n, B, and how the batch is drawn (not "shuffled": its steps are dependent).
    Returns:
        Variance of one step, in units of lr^2: [rows, rows], symmetric positive semidefinite; zero when B = n without
        replacement.
    Raises:
        ValueError: batch_size exceeds n_train without replacement; shuffled sampling.
    Exactness: exact for the gradient at given weights; along training for a model linear in its parameters.
    Cost: two d^3 products, 3 d^2 numbers.
    Source: derived in docs/derivations.md; checked against every possible batch in
    tests/laws/test_noise_by_enumeration.py.
    """
    _check_batch(batch_size, n_train, sampling)
    phi = sampling_factor(n_train, batch_size, sampling)
    return (phi / batch_size) * (kernel @ residual_covariance(second_moment, n_train) @ kernel.mT)


def _check_batch(batch_size: int, n_train: int, sampling: Sampling) -> None:
    if sampling == "shuffled":
        raise ValueError(
            "sampling must be 'with_replacement' or 'without_replacement', got 'shuffled'; the batches of an epoch are "
            "dependent, so one step has no covariance of its own: use dynamics.MomentRecursion"
        )
    if not batch_size >= 1 or (sampling == "without_replacement" and batch_size > n_train):
        raise ValueError(
            "batch_size must be at least 1, and at most n_train when drawn without replacement, "
            f'got batch_size={batch_size}, n_train={n_train}; use sampling="with_replacement"'
        )
