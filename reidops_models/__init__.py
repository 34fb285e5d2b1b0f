"""Whole re-identification models built on the operators of `reidops`."""

from .alignedreid import AlignedReID, AlignedReIDOutput
from .checkpoints import load_checkpoint
from .mudeep import MuDeepOutput, MuDeepV2

__all__ = ["AlignedReID", "AlignedReIDOutput", "MuDeepOutput", "MuDeepV2", "load_checkpoint"]
