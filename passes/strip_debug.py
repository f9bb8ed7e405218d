"""What exporters note about where a node came from is dropped: no runtime reads it, and it can be a sixth of a file.

before: Conv  {doc_string: "model.py(12): forward ...", metadata: pkg.torch.onnx.name_scopes, ...}
after:  Conv
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from onnxc.contract.passes import ExactPass, Outcome
from onnxc.model import Graph, Model, Node


@dataclass(frozen=True)
class StripDebug(ExactPass):
    """Remove stack traces and name scopes of exporters.

    1. Doc strings of nodes, in every graph.
    2. Metadata of nodes and graphs under an exporter's own prefix; anybody else's stays, and all of the model's.

    Attributes:
        prefixes: of the metadata keys that exporters write, separated by spaces.
    """

    name: ClassVar[str] = "strip-debug"

    prefixes: str = "pkg.torch. pkg.onnxscript. namespace source_code"

    def run(self, model: Model) -> Outcome:
        """Edit ``model`` in place."""
        prefixes, count, saved = tuple(self.prefixes.split()), 0, 0
        places: list[Graph | Node] = [*model.graphs(), *model.nodes()]
        for place in places:
            origin = place.origin
            if origin is None:
                continue
            kept = [entry for entry in origin.metadata_props if not entry.key.startswith(prefixes)]
            is_node = isinstance(origin, onnx.NodeProto)
            if len(kept) == len(origin.metadata_props) and not (is_node and origin.doc_string):
                continue
            lean = type(origin)()
            lean.CopyFrom(origin)
            if is_node:
                lean.ClearField("doc_string")
            del lean.metadata_props[:]
            lean.metadata_props.extend(kept)
            saved += origin.ByteSize() - lean.ByteSize()
            count += 1
            place.origin = lean
        return Outcome(count, (f"{saved} bytes of exporter's notes removed",) if count else ())
