"""Writes keras-*.onnx and Keras's own losses over five steps beside this file.

Made with: pip install keras==3.15.1 tensorflow-cpu==2.21.0 tf2onnx==1.17.0; python keras_models.py
"""

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
STEPS, BATCH, RATE = 5, 8, 0.05
layers = keras.layers


def around(mean):
    """The exporter leaves out additions of zero and products with one, and makes equal tensors one."""
    return keras.initializers.RandomNormal(mean, 0.1)


def dense(units, activation=None):
    return layers.Dense(units, activation=activation, bias_initializer=around(0))


def cnn():
    """Depthwise-separable, with batch normalisation, dropout and a closing softmax."""
    return [
        keras.Input((16, 8, 1)),
        layers.Conv2D(6, (5, 3), strides=2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, padding="same", bias_initializer=around(1)),
        layers.ReLU(6.0),
        layers.Conv2D(8, 1, bias_initializer=around(1)),
        layers.MaxPooling2D(2),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.2),
        dense(4, "softmax"),
    ]


def lstm():
    """A recurrent layer, whose loop the exporter recognises."""
    return [keras.Input((12, 3)), layers.LSTM(6), dense(4)]


def gru():
    """A recurrent layer that comes as a Loop."""
    return [keras.Input((8, 3)), layers.GRU(6), dense(4)]


class Encoder(layers.Layer):
    """Multi-head attention, layer normalisation and a dense layer with GELU."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = dense(8), dense(8)
        self.norm = layers.LayerNormalization(beta_initializer=around(0), gamma_initializer=around(1))
        self.attention = layers.MultiHeadAttention(2, 4, bias_initializer=around(0))

    def call(self, x):
        x = self.wide(x)
        x = self.norm(x + self.attention(x, x))
        return keras.activations.gelu(self.narrow(x), approximate=True)


def encoder():
    return [keras.Input((6, 3)), Encoder(), layers.GlobalAveragePooling1D(), dense(4)]


def losses_of(model, x, y):
    """Of five steps of plain gradient descent at frozen statistics."""
    optimizer = keras.optimizers.SGD(RATE)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=model.layers[-1].activation.__name__ == "linear"
    )
    losses = []
    for _ in range(STEPS):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        losses.append(float(value))
    return losses


def main():
    keras.utils.set_random_seed(0)
    found = {}
    for name, build in {
        "keras-cnn": cnn,
        "keras-lstm": lstm,
        "keras-gru": gru,
        "keras-encoder": encoder,
    }.items():
        model = keras.Sequential(build())
        rng = np.random.default_rng(0)
        x = rng.standard_normal((BATCH, *model.input_shape[1:])).astype(np.float32)
        y = rng.integers(0, 4, BATCH)
        model(x)
        model.export(HERE / f"{name}.onnx", format="onnx", verbose=False)
        found[name] = losses_of(model, x, y)
    (HERE / "keras-losses.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
