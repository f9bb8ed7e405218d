"""The passes that come with onnxc, in pipeline order: the table of contents of this folder."""

from .flush_subnormals import FlushSubnormals
from .merge_duplicates import MergeDuplicates
from .simplify import Simplify

PASSES: tuple[type, ...] = (Simplify, FlushSubnormals, MergeDuplicates)
