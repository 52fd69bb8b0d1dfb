"""What measurements of some genes say of the directions in which genes vary together."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stflow_graph.flow.kriging import Processes
from stflow_graph.nn.expression_field import ExpressionField

_MIN_INFORMATION = 1e-4  # of a direction, in units of what is known beforehand


@dataclasses.dataclass(frozen=True)
class MeasuredGenes:
    """What some genes tell of the field's R factors u, as K numbers v.

    Attributes:
        of_residuals: ``[K, M]`` what takes residuals of the genes to v, measured with noise.
        of_factors: ``[K, R]`` what takes u to v.
        to_factors: ``[R, K]`` what takes what v says to u.
        processes: of v, and of what genes have for themselves.
    """

    of_residuals: Tensor
    of_factors: Tensor
    to_factors: Tensor
    processes: Processes

    @classmethod
    def of(cls, field: ExpressionField, genes: Tensor) -> MeasuredGenes:
        """Return that of some genes.

        All genes tell every factor, with the noise that held-out slides have in it. Of some genes,
        v are the directions of u, in units of its deviations, about which errors are independent:
        eigenvectors of the information that the genes have.
        """
        loadings, processes = field.smooth_loadings, field.processes
        if len(genes) == len(loadings):
            same = torch.eye(loadings.size(1)).to(loadings)
            return cls(loadings[genes].t(), same, same, processes)
        q = loadings[genes].double().cpu().numpy()
        own = np.square(field.own_scale[genes].double().cpu().numpy())
        by_gene = q.T / (own * (processes.noise[-1] + processes.smooth[-1].sum()))
        # Woodbury: noise is shared along the directions too
        shared = np.linalg.inv(np.diag(1 / processes.noise[:-1]) + by_gene @ q)
        precise = by_gene - (by_gene @ q) @ shared @ by_gene
        variances = processes.smooth[:-1].sum(1) + processes.level[:-1]
        deviations = np.sqrt(variances)[:, None]
        precisions, v = np.linalg.eigh(deviations * (precise @ q) * deviations.T)
        told = precisions > max(_MIN_INFORMATION, 1e-9 * precisions[-1])
        precisions, v = precisions[told], v[:, told]
        smooth, level = (
            np.square(v).T @ (x / variances[:, None])
            for x in (processes.smooth[:-1], processes.level[:-1, None])
        )
        of_v = Processes(
            np.vstack([smooth, processes.smooth[-1:]]),
            np.append(level[:, 0], processes.level[-1]),
            np.append(1 / precisions, processes.noise[-1]),
        )
        of_residuals = (v.T * deviations.T) @ precise / precisions[:, None]
        maps = (of_residuals, (v / deviations).T, deviations * v)
        first, second, third = (torch.from_numpy(table).to(loadings) for table in maps)
        return cls(first, second, third, of_v)
