"""Patch encoders: a registry of names, each with its weights, transform and width."""

from stflow_graph.encoders.encoder import Encoder, PatchTransform
from stflow_graph.encoders.registry import ENCODERS, EncoderEntry, create_encoder

__all__ = ["ENCODERS", "Encoder", "EncoderEntry", "PatchTransform", "create_encoder"]
