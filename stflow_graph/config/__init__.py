"""Configuration: frozen typed records, TOML in and out, the command line wins over the file."""

from stflow_graph.config.load import load_config, parse_assignments, parse_config
from stflow_graph.config.records import (
    MAX_SAMPLE_STEPS,
    MAX_SEED,
    OPTIONS,
    RECIPES,
    Config,
    DataConfig,
    FlowConfig,
    GraphConfig,
    GraphDenoiserConfig,
    Precision,
    TrainConfig,
    TransformerDenoiserConfig,
)

__all__ = [
    "MAX_SAMPLE_STEPS",
    "MAX_SEED",
    "OPTIONS",
    "RECIPES",
    "Config",
    "DataConfig",
    "FlowConfig",
    "GraphConfig",
    "GraphDenoiserConfig",
    "Precision",
    "TrainConfig",
    "TransformerDenoiserConfig",
    "load_config",
    "parse_assignments",
    "parse_config",
]
