"""text_gru: tells what a noun is about, one of 26 topics, by its definition; Keras, through tf2onnx.

python models/make/text_gru.py    # tensorflow-cpu==2.21.0 keras==3.15.1 tf2onnx==1.17.0 onnx==1.23.2
                                  # scikit-learn==1.9.1, 1.5 minutes on one core
"""

from __future__ import annotations

import data
import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
keras.utils.set_random_seed(0)
WIDTH = 64

if __name__ == "__main__":
    parts = data.load("glosses")
    tokens = keras.Input((data.TOKENS,), dtype="int32", name="tokens")
    x = layers.Embedding(data.VOCABULARY, WIDTH, name="embedding")(tokens)
    x = layers.SpatialDropout1D(0.3)(x)
    x = layers.Bidirectional(layers.GRU(WIDTH, return_sequences=True), name="gru")(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dropout(0.3)(layers.Dense(128, activation="relu", name="hidden")(x))
    model = keras.Model(tokens, layers.Dense(data.TOPICS, activation="softmax", name="topic")(x))
    steps = 3 * (len(parts.train.x) // 128)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        parts.train.x.astype(np.int32),
        parts.train.y,
        batch_size=128,
        epochs=3,
        verbose=2,
        validation_data=(parts.calib.x.astype(np.int32), parts.calib.y),
    )
    signature = [tf.TensorSpec((None, data.TOKENS), tf.int32, name="tokens")]
    function = tf.function(lambda tokens: model(tokens, training=False), input_signature=signature)
    tf2onnx.convert.from_function(function, signature, opset=17, output_path=str(data.MAKE.parent / "text_gru.onnx"))
