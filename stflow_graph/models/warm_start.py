"""Training that starts from another model: other genes, another tissue or stain, fewer slides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stflow_graph.config import Config, GraphDenoiserConfig, TransformerDenoiserConfig
from stflow_graph.data.normalise import Normalisation
from stflow_graph.errors import BadConfig
from stflow_graph.models.build import build_denoiser
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.nn.pretrained import weights_of_member
from stflow_graph.stats.panels import genes_by_slides

_RIDGE = "ridge_head."
_PENALTY = 0.01  # of combinations of genes, in mean eigenvalues of their predictions' covariance


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A model to start from, for a training on some genes.

    Attributes:
        source: the model.
        genes: G names that will be learnt.
    """

    source: Checkpoint
    genes: Sequence[str]

    def adapt(self, config: Config) -> Config:
        """Return the configuration with the network of the model.

        Raises:
            BadConfig: embeddings, targets or samples of another kind than the model's.
        """
        theirs = self.source.config
        kinds = {
            "data.encoder": (config.data.encoder, theirs.data.encoder),
            "data.target": (config.data.target, theirs.data.target),
            "data.standardize": (config.data.standardize, theirs.data.standardize),
            "data.center_targets": (config.data.center_targets, theirs.data.center_targets),
            "denoiser.name": (config.denoiser.name, theirs.denoiser.name),
            "flow.kind": (config.flow.kind, theirs.flow.kind),
        }
        for name, (ours, other) in kinds.items():
            if ours != other:
                raise BadConfig(
                    f"{name}: found {ours!r}, expected {other!r} as of the model to start from"
                )
        return config.model_copy(update={"denoiser": self._network(config)})

    def _network(self, config: Config) -> GraphDenoiserConfig | TransformerDenoiserConfig:
        """Return the model's network; with a wider ridge head where it learns new genes."""
        ours, theirs = config.denoiser, self.source.config.denoiser
        if not isinstance(ours, GraphDenoiserConfig) or not isinstance(theirs, GraphDenoiserConfig):
            return theirs
        changes: dict[str, float] = {}
        if ours.input_dropout != "auto":
            changes["input_dropout"] = ours.input_dropout
        if theirs.ridge_rank and self.has_new_genes:
            changes["ridge_rank"] = min(theirs.ridge_rank + ours.ridge_rank, len(self.genes))
        return theirs.model_copy(update=changes)

    def scaling(self, normalisation: Normalisation) -> Normalisation:
        """Return a normalisation that scales embeddings as the model's does."""
        theirs = self.source.normalisation
        return dataclasses.replace(normalisation, x_mean=theirs.x_mean, x_std=theirs.x_std)

    def load(self, network: nn.Module, member: int) -> None:
        """Give a network the weights of one of the model's members.

        Rows and columns of genes are taken by name. Rows of genes that the model does not have stay
        as they are, and so does the ridge head; columns, by which the network sees its estimates
        of these genes, are 0: the other genes are predicted as by the model.

        Args:
            network: as the adapted configuration describes it, with G genes.
            member: of the training; members start from the model's in turn.
        """
        weights, axes = self._weights(member), self._gene_axes
        ours, theirs = self._known
        with torch.no_grad():
            for name, parameter in network.state_dict().items():
                if _RIDGE in name or name not in weights:
                    continue
                if 1 in axes[name]:
                    parameter.zero_()
                _copy(parameter, weights[name].to(parameter), axes[name], ours, theirs)

    def start_new_genes(
        self, network: nn.Module, means: Sequence[np.ndarray], ys: Sequence[np.ndarray]
    ) -> None:
        """Let a network predict each new gene by the combination of known ones that fits it best.

        Args:
            network: after :meth:`load`; it predicts the known genes already.
            means: ``[N_s, G]`` its predictions for the slides to learn from.
            ys: ``[N_s, G]`` their expression in the same scale, NaN for genes not measured.
        """
        ours, _ = self._known
        new = np.setdiff1d(np.arange(len(self.genes)), ours)
        if not len(ours) or not len(new):
            return
        weights, bias = _combinations([mean[:, ours] for mean in means], [y[:, new] for y in ys])
        axes = self._gene_axes
        with torch.no_grad():
            for name, parameter in network.state_dict().items():
                if _RIDGE not in name and axes.get(name) == [0]:
                    rows = torch.from_numpy(weights.T).to(parameter) @ parameter[ours]
                    if parameter.dim() == 1:
                        rows += torch.from_numpy(bias).to(parameter)
                    parameter[new] = rows

    def ridge(self, member: int) -> np.ndarray | None:
        """Return the weights ``[F, G]`` of the ridge of one of the model's members.

        Returns:
            NaN for genes that the model does not have; None if it has no ridge.
        """
        parts = {name: value for name, value in self._weights(member).items() if _RIDGE in name}
        if not parts or not any(value.any() for value in parts.values()):
            return None
        up, down = (
            next(value.double().numpy() for name, value in parts.items() if name.endswith(end))
            for end in ("up.weight", "down.weight")
        )
        ours, theirs = self._known
        weights = np.full((down.shape[1], len(self.genes)), np.nan)
        weights[:, ours] = (up[theirs] @ down).T
        return weights

    @property
    def has_new_genes(self) -> bool:
        """Whether there are genes to learn that the model does not have."""
        return len(self._known[0]) < len(self.genes)

    @property
    def _known(self) -> tuple[list[int], list[int]]:
        """The genes of both: their numbers here and in the model."""
        known = {gene: i for i, gene in enumerate(self.source.genes)}
        ours = [i for i, gene in enumerate(self.genes) if gene in known]
        return ours, [known[self.genes[i]] for i in ours]

    def _weights(self, member: int) -> dict[str, Tensor]:
        source = self.source
        return weights_of_member(source.weights, source.n_members, member % source.n_members)

    @functools.cached_property
    def _gene_axes(self) -> dict[str, list[int]]:
        """The axes of each tensor that are of genes."""
        source, n_genes = self.source, len(self.source.genes)
        few, more = (_shapes(source.config, source.in_channels, n) for n in (n_genes, n_genes + 1))
        return {
            name: [d for d, n in enumerate(more[name]) if n != shape[d]]
            for name, shape in few.items()
        }


def _combinations(
    means: Sequence[np.ndarray], ys: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return ridge regressions of new genes on the predictions of known ones.

    Args:
        means: ``[N_s, K]`` of each slide.
        ys: ``[N_s, M]``, NaN for genes that the slide does not measure.

    Returns:
        ``[K, M]`` and ``[M]``; 0 for a gene that no slide measures.
    """
    weights = np.zeros((means[0].shape[1], ys[0].shape[1]))
    bias = np.zeros(len(weights.T))
    for slides, genes in genes_by_slides(ys):
        x, y = (
            [part.astype(np.float64) for part in parts]
            for parts in ([means[i] for i in slides], [ys[i][:, genes] for i in slides])
        )
        a, b = (np.concatenate([part - part.mean(axis=0) for part in parts]) for parts in (x, y))
        gram = a.T @ a
        penalty = max(_PENALTY * np.trace(gram) / len(gram), 1e-12)
        weights[:, genes] = np.linalg.solve(gram + penalty * np.eye(len(gram)), a.T @ b)
        bias[genes] = (np.concatenate(y) - np.concatenate(x) @ weights[:, genes]).mean(axis=0)
    return weights, bias


def _shapes(config: Config, width: int, n_genes: int) -> dict[str, torch.Size]:
    """Return the shapes of a network's tensors for a number of genes."""
    with torch.random.fork_rng(devices=[]):
        network = build_denoiser(config, width, n_genes)
    return {name: value.shape for name, value in network.state_dict().items()}


def _copy(
    target: Tensor, source: Tensor, gene_axes: list[int], ours: list[int], theirs: list[int]
) -> None:
    """Copy a tensor, along axes of genes only the genes of both."""
    if not gene_axes:
        target.copy_(source)
        return
    places = [
        [genes if axis in gene_axes else range(n) for axis, n in enumerate(source.shape)]
        for genes in (ours, theirs)
    ]
    into, taken = (
        tuple(map(torch.from_numpy, np.ix_(*(np.array(axis, np.int64) for axis in axes))))
        for axes in places
    )
    target[into] = source[taken]
