"""How far two sets of pictures are apart by the features of a network: FID and KID."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from enlarger.errors import InputError

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # Bińkowski et al. 2018, section 4


def frechet_distance(found: Tensor, real: Tensor) -> float:
    """The Fréchet distance of normal distributions fitted to features (N, D) and (M, D) (Heusel et al. 2017, eq. 6).

    Computed in float64; of the matrix root only the trace is needed, the sum of the singular values of a product of
    symmetric roots. Raises InputError for fewer than 2 rows.
    """
    _check(found, real, 2, "FID")
    a, b = found.double(), real.double()
    covariances = [each.mT.cov() for each in (a, b)]
    roots = cast(Tensor, torch.linalg.svdvals(_symmetric_root(covariances[0]) @ _symmetric_root(covariances[1])))
    traces = sum(float(each.trace()) for each in covariances)
    return float((a.mean(0) - b.mean(0)).square().sum()) + traces - 2 * float(roots.sum())


@dataclass(frozen=True)
class KernelDistance:
    """The mean over random subsets, and their standard deviation."""

    mean: float
    std: float


def kernel_distance(
    found: Tensor, real: Tensor, *, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """KID: the unbiased squared MMD of features (N, D) and (M, D) under (x y / D + 1) ** 3 (Bińkowski et al. 2018).

    Over subsets of at most `subset_size`; where both sets fit into one, it is that of all. Raises InputError for fewer
    than 2 rows.
    """
    _check(found, real, 2, "KID")
    count = min(subset_size, len(found), len(real))
    if count == len(found) == len(real):
        return KernelDistance(_mmd(found.double(), real.double()), 0.0)
    generator = torch.Generator().manual_seed(seed)
    values = [
        _mmd(*(each[torch.randperm(len(each), generator=generator)[:count]].double() for each in (found, real)))
        for _ in range(subsets)
    ]
    distances = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(distances.mean()), float(distances.std(correction=0)))


def _mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate: a picture is not compared with itself (Gretton et al. 2012, eq. 3)."""
    n, m = len(x), len(y)
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (_kernel(x, x), _kernel(y, y))]
    return float(within[0] + within[1] - 2 * _kernel(x, y).sum() / (n * m))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = cast(tuple[Tensor, Tensor], torch.linalg.eigh(matrix))
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def _check(found: Tensor, real: Tensor, least: int, name: str) -> None:
    if found.ndim != 2 or real.ndim != 2 or found.shape[1] != real.shape[1]:
        raise InputError(
            f"{name}: found {tuple(found.shape)} and {tuple(real.shape)}, expected features (N, D), (M, D)"
        )
    if min(len(found), len(real)) < least:
        raise InputError(f"{name}: found {min(len(found), len(real))} pictures, expected {least} or more; add pictures")
