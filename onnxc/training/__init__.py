"""Training straight from ONNX files: a graph as torch functions, and back.

In: a teacher, a student, inputs. Out: the student, its weights changed where they lie in the file. The only
folder that imports torch, which is the extra ``distill``: whoever needs it imports from here at the last moment.

      interpreter.py  graph -> torch        operators/   one small file per family
      latents.py      parameter <-> value: floats, codes, scales, zeros that stay
      weights.py      what in a file is learned: which latents   leaning.py  where its codes start
      losses.py       outputs -> a number   parity.py    the interpreter against ONNX Runtime
      lesson.py       samples with the teacher's answers     mixing.py    samples mixed of two
      devices.py      CUDA or the processor, and torch in order on it
      tuning.py       one optimization: held-back samples, best checkpoint, early stop, resume
      blocks.py       where a graph can be cut, and the block-wise tuning
      recover.py      a compressed model against its original
      distill.py      any student against any teacher
      students.py     students made out of the teacher
"""

from importlib.util import find_spec

from onnxc.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError("training needs PyTorch, which is not installed: pip install onnxc[distill]")
