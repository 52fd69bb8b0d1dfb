"""Leading eigenvectors of symmetric matrices that may be too large to be made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

DENSE = 500  # rows up to which a matrix is made


def leading_eigenvectors(
    product: Callable[[np.ndarray], np.ndarray], n: int, rank: int
) -> np.ndarray:
    """Return the eigenvectors ``[n, rank]`` of the largest eigenvalues, in descending order.

    Args:
        product: of the matrix ``[n, n]`` with ``[n]`` or ``[n, k]``.
        n: rows of the matrix.
        rank: number of eigenvectors; of a matrix that has fewer, all.
    """
    if n <= max(DENSE, rank + 1):
        vectors = np.linalg.eigh(product(np.eye(n)))[1]
    else:
        operator = LinearOperator((n, n), matvec=product, matmat=product, dtype=np.float64)
        vectors = eigsh(operator, k=rank, v0=np.ones(n))[1]
    return np.ascontiguousarray(vectors[:, : -1 - rank : -1])
