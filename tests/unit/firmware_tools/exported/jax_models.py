"""Writes jax-*.onnx and JAX's own losses over five steps beside this file.

Made with: pip install jax==0.10.2 flax==0.12.8 jax2onnx==0.17.1; python jax_models.py
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax2onnx import to_onnx

HERE = Path(__file__).parent
STEPS, BATCH, RATE = 5, 8, 0.05


class Cnn(nnx.Module):
    """Convolutions with a frozen batch normalisation, pools and a dense layer."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs, use_running_average=True)
        self.second = nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(24, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.silu(self.second(x))
        return self.head(x.reshape(x.shape[0], -1))


class Encoder(nnx.Module):
    """Multi-head attention, layer normalisation and a dense layer with GELU."""

    def __init__(self, rngs):
        self.wide, self.narrow = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
        self.norm, self.head = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.wide(x)
        x = self.norm(x + self.attention(x))
        return self.head(nnx.gelu(self.narrow(x)).mean(axis=1))


class Scan(nnx.Module):
    """A recurrent network over [batch, time, 3] by jax.lax.scan, which comes as a Loop."""

    def __init__(self, rngs):
        self.inner, self.outer = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 6, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        def step(state, now):
            state = jnp.tanh(self.inner(now) + self.outer(state))
            return state, state

        last, states = jax.lax.scan(step, jnp.zeros((x.shape[0], 6)), jnp.swapaxes(x, 0, 1))
        return self.head(last + states.mean(axis=0))


class Plain(nnx.Module):
    """Nothing but arrays and jax.numpy, with a closing softmax."""

    def __init__(self, rngs):
        self.w1, self.w2 = (nnx.Param(0.4 * jax.random.normal(rngs(), s)) for s in ((12, 8), (8, 4)))

    def __call__(self, x):
        return jax.nn.softmax(jnp.tanh(x @ self.w1[...]) @ self.w2[...])


def disturbed(state):
    """Initial biases are equal, and the exporter would store them as one tensor."""
    noise = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(noise), p.shape), state)


def losses_of(model, x, y, *, logits):
    """Of five steps of plain gradient descent at frozen statistics."""

    def loss(m):
        out = m(x)
        log_p = jax.nn.log_softmax(out) if logits else jnp.log(out)
        return -log_p[jnp.arange(len(y)), y].mean()

    losses = []
    for _ in range(STEPS):
        value, gradients = nnx.value_and_grad(loss)(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - RATE * g, nnx.state(model, nnx.Param), gradients))
        losses.append(float(value))
    return losses


def main():
    found = {}
    for name, (kind, shape) in {
        "cnn": (Cnn, (8, 8, 1)),
        "encoder": (Encoder, (6, 3)),
        "scan": (Scan, (5, 3)),
        "plain": (Plain, (12,)),
    }.items():
        model = kind(nnx.Rngs(0))
        nnx.update(model, disturbed(nnx.state(model, nnx.Param)))
        path = HERE / f"jax-{name}.onnx"
        to_onnx(model, [("B", *shape)], model_name=name, return_mode="file", output_path=str(path))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
        y = rng.integers(0, 4, BATCH)
        found[f"jax-{name}"] = losses_of(model, x, y, logits=kind is not Plain)
    (HERE / "jax-losses.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
