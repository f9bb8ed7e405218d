"""sklearn_mlp: a pipeline of scaler and multi-layer perceptron on scikit-learn's digits, through skl2onnx.

python models/make/sklearn_mlp.py    # scikit-learn==1.9.1 skl2onnx==1.20.0 onnx==1.23.2, seconds
"""

from __future__ import annotations

import data
import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if __name__ == "__main__":
    parts = data.load("digits")
    network = MLPClassifier((384, 192), alpha=1e-2, max_iter=80, random_state=0)
    pipeline = make_pipeline(StandardScaler(), network).fit(parts.train.x.astype(np.float32), parts.train.y)
    model = to_onnx(
        pipeline,
        parts.train.x[:1].astype(np.float32),
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    (data.MAKE.parent / "sklearn_mlp.onnx").write_bytes(model.SerializeToString())
