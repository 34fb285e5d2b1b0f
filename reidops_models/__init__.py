"""Whole re-identification models built on the operators of `reidops`."""

from .alignedreid import AlignedReID, AlignedReIDOutput
from .checkpoints import load_checkpoint

__all__ = ["AlignedReID", "AlignedReIDOutput", "load_checkpoint"]
