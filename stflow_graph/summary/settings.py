"""Settings of a summary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stflow_graph.errors import BadConfig
from stflow_graph.io.tables import TABLE_FORMATS, TableFormat

_MAX_DOMAINS, _MAX_SMOOTHING = 100, 100


@dataclasses.dataclass(frozen=True)
class SummarySettings:
    """What is summarised.

    Attributes:
        gene_sets: GMT files.
        patients: table of slides (``sample_id``) and patients; None for none.
        reference: predictions of the slides that shares of high expression refer to, such as the
            training slides; none leaves the shares out.
        domains: number of spatial domains; 0 for none.
        smoothing: averages over neighbours before spots are assigned to domains.
        seed: of the domains.
        format: of the tables.

    Raises:
        BadConfig: a value out of range.
    """

    gene_sets: tuple[Path, ...] = ()
    patients: Path | None = None
    reference: tuple[Path, ...] = ()
    domains: int = 0
    smoothing: int = 0
    seed: int = 0
    format: TableFormat = "csv"

    def __post_init__(self) -> None:
        if self.domains and not 2 <= self.domains <= _MAX_DOMAINS:
            raise BadConfig(f"domains {self.domains}: expected 0, or 2 to {_MAX_DOMAINS}")
        if not 0 <= self.smoothing <= _MAX_SMOOTHING:
            raise BadConfig(f"smoothing {self.smoothing}: expected 0 to {_MAX_SMOOTHING}")
        if self.seed < 0 or self.seed >= 2**32:
            raise BadConfig(f"seed {self.seed}: expected 0 to {2**32 - 1}")
        if self.format not in TABLE_FORMATS:
            raise BadConfig(f"format {self.format!r}: expected one of {', '.join(TABLE_FORMATS)}")
