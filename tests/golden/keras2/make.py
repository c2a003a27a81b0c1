"""Make the files of this folder: models as Keras 2 saves them, and what they answer.

    pip install tensorflow-cpu tf-keras && python tests/golden/keras2/make.py

Made with tf-keras 2.21.0 and TensorFlow 2.21.0, which the tests do not need.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

FOLDER = Path(__file__).parent


def models() -> dict[str, Any]:
    """Layers that Keras 2 describes in words that Keras 3 does not know."""
    layers = tf_keras.layers
    x = layers.Input((4, 3))
    together = layers.Concatenate()([layers.Bidirectional(layers.LSTM(3))(x), layers.GRU(4)(x)])
    return {
        "recurrent": tf_keras.Model(x, layers.Dense(2)(together)),
        "picture": tf_keras.Sequential([
            layers.Input((8, 8, 3)), layers.SeparableConv2D(4, 3, kernel_regularizer="l2"), layers.LeakyReLU(alpha=0.1),
            layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization(), layers.ReLU(6.0),
            layers.Conv2DTranspose(4, 3, strides=2), layers.GlobalMaxPooling2D(), layers.Dense(2),
        ]),
    }  # fmt: skip


def main() -> None:
    """Train a step, so that no statistic is at its start, save, and ask."""
    tf_keras.utils.set_random_seed(0)
    for name, model in models().items():
        model.compile("sgd", "mse")
        x = np.random.default_rng(0).normal(size=(9, *model.input_shape[1:])).astype(np.float32)
        model.fit(x, np.zeros((9, 2)), verbose=0)
        model.save(FOLDER / f"{name}.h5", include_optimizer=False)
        model.save(FOLDER / f"{name}.keras")
        np.savez_compressed(FOLDER / f"{name}.npz", x=x, y=model.predict(x, verbose=0))


if __name__ == "__main__":
    main()
