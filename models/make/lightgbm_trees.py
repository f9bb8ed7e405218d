"""lightgbm_trees: gradient boosted trees on scikit-learn's digits, through onnxmltools.

python models/make/lightgbm_trees.py    # lightgbm==4.7.0 onnxmltools==1.16.0 skl2onnx==1.20.0 onnx==1.23.2
                                        # scikit-learn==1.9.1, seconds
"""

from __future__ import annotations

import data
import lightgbm
import numpy as np
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

if __name__ == "__main__":
    parts = data.load("digits")
    trees = lightgbm.LGBMClassifier(
        n_estimators=40, num_leaves=15, random_state=0, n_jobs=1, deterministic=True, force_row_wise=True
    )
    trees.fit(parts.train.x.astype(np.float32), parts.train.y.astype(np.int64))
    model = convert_lightgbm(
        trees,
        initial_types=[("features", FloatTensorType([None, 64]))],
        target_opset=15,
        zipmap=False,
    )
    (data.MAKE.parent / "lightgbm_trees.onnx").write_bytes(model.SerializeToString())
