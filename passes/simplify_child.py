"""The process in which onnxsim runs: it may abort or hang on a hostile graph, then only this process is lost.

In, on stdin, again and again: the length of a ModelProto (8 bytes, little endian) and the ModelProto. Out, on
stdout: the length of the answer and the answer: one byte ``=`` and the simplified ModelProto, or ``!`` and
why there is none.

Run by path (see onnxsim_process.py), so that it imports nothing but onnxsim. It ends when stdin closes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, BinaryIO

# Rewrites that make models slower in ONNX Runtime, larger, or blind for what comes after:
SKIPPED = (
    "fuse_matmul_add_bias_into_gemm",  # hides the MatMul + Add that fuses; Reshapes around rank 3
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_preceding_mul_into_conv",  # takes the 0.5 out of Gelu: ONNX Runtime no longer fuses it (5 to 10 %)
    "fuse_qkv",  # copies three weights into one: unties, and hides sites
    "fuse_attention",  # the operators below need an opset that the model may not have
    "fuse_gqa",
    "fuse_rope",
    "fuse_rms_norm",
    "fuse_lp_normalization",
)
FOLDED_BYTES = "4KB"  # larger results stay computed: ONNX Runtime folds them at load, the file stays small


def simplify(proto: bytes) -> bytes:
    """The ModelProto ``proto`` after onnxsim, without the notes that it leaves in the metadata."""
    import onnx
    import onnxsim

    model = onnx.load_from_string(proto)
    after, _ = onnxsim.simplify(model, skipped_optimizers=list(SKIPPED), tensor_size_threshold=FOLDED_BYTES)
    notes = [entry for entry in after.metadata_props if entry.key.startswith("onnxsim.")]
    for entry in notes:
        after.metadata_props.remove(entry)
    return bytes(after.SerializeToString(deterministic=True))


def main() -> None:
    """Serve requests until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: its end closes stdin
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what onnxsim prints must not get between the answers
    optional: dict[str, Any] = sys.modules  # None is how an import is forbidden
    optional.setdefault("torch", None)  # onnxsim imports it where it finds it: 1.5 s and 200 MB for nothing
    optional.setdefault("sympy", None)
    requests: BinaryIO = sys.stdin.buffer
    while len(header := requests.read(8)) == 8:
        proto = requests.read(int.from_bytes(header, "little"))
        try:
            answer = b"=" + simplify(proto)
        except Exception as error:  # noqa: BLE001  # onnxsim raises whatever its C++ core, protobuf or ONNX Runtime raises
            answer = b"!" + " ".join(str(error).split())[:300].encode()
        answers.write(len(answer).to_bytes(8, "little") + answer)
        answers.flush()


if __name__ == "__main__":
    main()
