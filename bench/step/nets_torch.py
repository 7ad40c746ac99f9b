"""The PyTorch twins of the networks in `nets`, with parameters of the same names, shapes and values."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name

EPSILON = 1e-3  # firmware_tools.layers' own


class Pilot(nn.Module):
    """Twin of `nets.pilot`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.dense = nn.Linear(32 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.dense(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


class Cnn1d(nn.Module):
    """Twin of `zoo.cnn1d`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(6, 32, 5, padding=2), nn.Conv1d(32, 48, 5, padding=2)
        self.conv3, self.dense = nn.Conv1d(48, 64, 5, padding=2), nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = F.max_pool1d(F.relu(self.conv1(x)), 2)
        x = F.max_pool1d(F.relu(self.conv2(x)), 2)
        return self.dense(F.relu(self.conv3(x)).mean(dim=2))


class DsCnn(nn.Module):
    """Twin of `nets.ds_cnn`."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        layers = {"conv": nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1))}
        for i in range(4):
            layers[f"depth{i}"] = nn.Conv2d(64, 64, 3, padding=1, groups=64)
            layers[f"point{i}"] = nn.Conv2d(64, 64, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)
            setattr(self, f"{name}_norm", nn.BatchNorm2d(64, eps=EPSILON) if norm else nn.Identity())
        self.order = list(layers)
        self.dense = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        for name in self.order:
            x = F.relu(getattr(self, f"{name}_norm")(getattr(self, name)(x)))
        return self.dense(x.mean(dim=(2, 3)))


class ResNet8(nn.Module):
    """Twin of `nets.resnet8`."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        shapes = {"conv": (3, 16, 3, 1)}
        for i, (width, channels) in enumerate(((16, 16), (16, 32), (32, 64))):
            stride = 1 if channels == width else 2
            shapes[f"stack{i}a"], shapes[f"stack{i}b"] = (
                (width, channels, 3, stride),
                (channels, channels, 3, 1),
            )
            if stride > 1:
                shapes[f"short{i}"] = (width, channels, 1, stride)
        for name, (width, channels, kernel, stride) in shapes.items():
            setattr(self, name, nn.Conv2d(width, channels, kernel, stride, padding=kernel // 2))
            normed = norm and not name.startswith("short")
            setattr(self, f"{name}_norm", nn.BatchNorm2d(channels, eps=EPSILON) if normed else nn.Identity())
        self.dense = nn.Linear(64, 10)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, f"{name}_norm")(getattr(self, name)(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = F.relu(self._layer("conv", x))
        for i in range(3):
            y = self._layer(f"stack{i}b", F.relu(self._layer(f"stack{i}a", x)))
            x = F.relu((self._layer(f"short{i}", x) if i else x) + y)
        return self.dense(x.mean(dim=(2, 3)))


class Recurrent(nn.Module):
    """Twin of `nets.recurrent`."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.layer = layer
        self.dense = nn.Linear(layer.hidden_size, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        states, _ = self.layer(x)
        return self.dense(states[:, -1])


MODULES: dict[str, Callable[[], nn.Module]] = {
    "pilot": Pilot,
    "cnn1d": Cnn1d,
    "gru": lambda: Recurrent(nn.GRU(6, 64, batch_first=True)),
    "lstm": lambda: Recurrent(nn.LSTM(6, 64, batch_first=True)),
    "ds_cnn": lambda: DsCnn(norm=True),
    "resnet8": lambda: ResNet8(norm=True),
    "ds_cnn_plain": lambda: DsCnn(norm=False),
    "resnet8_plain": lambda: ResNet8(norm=False),
}
# Where PyTorch's gates are among ONNX's: (r, z, n) in (z, r, h), and (i, f, g, o) in (i, o, f, c).
_GATES = {"gru": (1, 0, 2), "lstm": (0, 2, 3, 1)}


def module(name: str, values: Mapping[str, np.ndarray]) -> nn.Module:
    """The twin with these initial values, which have the names of the ONNX model's initializers."""
    net = MODULES[name]()
    given = {k.replace(".scale", ".weight").replace(".shift", ".bias"): v for k, v in values.items()}
    if name in _GATES:
        given |= _recurrent(values, _GATES[name])
    state = net.state_dict()
    missing = [k for k in dict(net.named_parameters()) if k not in given]
    if missing:
        raise KeyError(f"{name}: no initial value for {', '.join(missing)}")
    net.load_state_dict({k: torch.from_numpy(given[k].copy()) if k in given else v for k, v in state.items()})
    return net


def _recurrent(values: Mapping[str, np.ndarray], order: tuple[int, ...]) -> dict[str, np.ndarray]:
    def turned(value: np.ndarray) -> np.ndarray:
        parts = np.split(value, len(order))
        return np.concatenate([parts[i] for i in order])

    first, second = np.split(values["bias"][0], 2)
    return {
        "layer.weight_ih_l0": turned(values["input"][0]),
        "layer.weight_hh_l0": turned(values["recurrent"][0]),
        "layer.bias_ih_l0": turned(first),
        "layer.bias_hh_l0": turned(second),
    }
