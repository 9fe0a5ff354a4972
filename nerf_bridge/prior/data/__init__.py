"""The embedded prior's training data: openly licensed models and primitives, packed, with their captions."""

from nerf_bridge.prior.data.captions import DEGRADATIONS, CaptionTable, build_caption_table
from nerf_bridge.prior.data.model import LibraryModel

__all__ = ["DEGRADATIONS", "CaptionTable", "LibraryModel", "build_caption_table"]
