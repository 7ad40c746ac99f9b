"""RNN, GRU and LSTM of the ONNX specification, one sample and one step at a time in numpy, float64.

It shares nothing with the compiler: each sequence is walked by itself, as far as it goes. The last states of a
sequence without a step are zero, as ONNX Runtime has it.
"""

from functools import partial

import numpy as np

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
USUAL = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
FUNCTIONS = {
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, alpha * x, x),
    "ThresholdedRelu": lambda x, alpha=1.0: np.where(x > alpha, x, 0),
    "ScaledTanh": lambda x, alpha=1.0, beta=1.0: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "Elu": lambda x, alpha=1.0: np.where(x < 0, alpha * (np.exp(x) - 1), x),
}
ALPHA = ("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu")
BETA = ("Affine", "ScaledTanh", "HardSigmoid")


def bounded(function, limit, parameters, x):
    return function(np.clip(x, -limit, limit), **parameters)


def functions(op, attributes, count):
    """The activations of each direction; alphas and betas are used up in their order."""
    names = attributes.get("activations") or USUAL[op] * count
    alphas, betas = (list(attributes.get(f"activation_{k}") or ()) for k in ("alpha", "beta"))
    limit = attributes.get("clip") or np.inf
    made = []
    for name in names:
        given = {"alpha": alphas.pop(0)} if name in ALPHA and alphas else {}
        given |= {"beta": betas.pop(0)} if name in BETA and betas else {}
        made.append(partial(bounded, FUNCTIONS[name], limit, given))
    each = len(names) // count
    return [made[i * each : (i + 1) * each] for i in range(count)]


def step(op, x, state, layer, attributes):
    """The formulae of one step for one sample: x [width], h and c [hidden]; `layer` is its tensors and functions."""
    (h, c), (w, r, b, p, act), size = state, layer, len(state[0])
    wx, rh = (w @ x).reshape(-1, size), (r @ h).reshape(-1, size)
    wb, rb = b.reshape(2, -1, size)
    if op == "RNN":
        return act[0](wx[0] + rh[0] + wb[0] + rb[0]), c
    if op == "GRU":
        z, reset = (act[0](wx[i] + rh[i] + wb[i] + rb[i]) for i in (0, 1))
        if attributes.get("linear_before_reset"):
            fresh = act[1](wx[2] + reset * (rh[2] + rb[2]) + wb[2])
        else:
            fresh = act[1](wx[2] + r[2 * size :] @ (reset * h) + rb[2] + wb[2])
        return (1 - z) * fresh + z * h, c
    total, (pi, po, pf) = wx + rh + wb + rb, p.reshape(3, size)
    i = act[0](total[0] + pi * c)
    f = 1 - i if attributes.get("input_forget") else act[0](total[2] + pf * c)
    c = f * c + i * act[1](total[3])
    o = act[0](total[1] + po * c)
    return o * act[2](c), c


def recurrence(op, x, w, r, *, b=None, lengths=None, h0=None, c0=None, p=None, **attributes):
    """Y, Y_h and for LSTM Y_c in the layout that the attributes say."""
    count, size = len(w), r.shape[2]
    if attributes.get("layout"):
        x = x.swapaxes(0, 1)
        h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
    steps, batch = x.shape[:2]
    b = np.zeros((count, 2 * GATES[op] * size)) if b is None else b
    p = np.zeros((count, 3 * size)) if p is None else p
    lengths = [steps] * batch if lengths is None else lengths
    every = np.zeros((steps, count, batch, size))
    last = [np.zeros((count, batch, size)) if s is None else np.array(s, float) for s in (h0, c0)]
    acts = functions(op, attributes, count)
    for d in range(count):
        backwards = d == 1 or attributes.get("direction") == "reverse"
        for n in range(batch):
            order = range(lengths[n])
            for t in reversed(order) if backwards else order:
                state = last[0][d, n], last[1][d, n]
                h, c = step(op, x[t, n], state, (w[d], r[d], b[d], p[d], acts[d]), attributes)
                every[t, d, n] = last[0][d, n] = h
                last[1][d, n] = c
            if not lengths[n]:
                last[0][d, n] = last[1][d, n] = 0
    if attributes.get("layout"):
        every, last = every.transpose(2, 0, 1, 3), [s.swapaxes(0, 1) for s in last]
    return every, *last[: 2 if op == "LSTM" else 1]
