"""Whole PyTorch models through both exporters against PyTorch's own training; skipped where torch is absent."""

import io

import numpy as np
import onnx
import pytest

from edge_client.training import TrainingSession
from firmware_tools import compile_training

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, STEPS, RATE = 6, 20, 0.05
CLASSES = 4


class Recurrent(nn.Module):
    """A recurrent layer over [batch, time, 3], and a dense layer on its last state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        width = layer.hidden_size * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        states, _ = self.layer(x)
        return self.head(states[:, -1])


class Encoder(nn.Module):
    """One transformer encoder layer of single-head attention over [batch, 5, 8], averaged over time."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(8, 8) for _ in range(4))
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5
        x = self.first(x + self.mix(torch.softmax(scores, dim=-1) @ self.value(x)))
        x = self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return self.head(x.mean(dim=1))


class Attention(nn.Module):
    """PyTorch's own encoder, two heads over [batch, 5, 8], its second layer a copy of the first."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.layer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean(dim=1))


class Autoencoder(nn.Module):
    """Convolutions down and up again, and logits from the reconstruction."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        code = nn.functional.leaky_relu(self.down(x))
        return self.head(torch.tanh(self.up(code)).flatten(1))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(), nn.Flatten(), nn.Linear(24, CLASSES),
    )  # fmt: skip


def depthwise():
    return nn.Sequential(
        nn.Conv2d(1, 6, (4, 3), stride=2, padding=1), nn.BatchNorm2d(6), nn.Hardswish(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 8, 1), nn.PReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


MODELS = {
    "cnn": (convolutional, (1, 8, 8)),
    "ds-cnn": (depthwise, (1, 8, 8)),
    "gru": (lambda: Recurrent(nn.GRU(3, 5, batch_first=True)), (6, 3)),
    "lstm": (lambda: Recurrent(nn.LSTM(3, 5, batch_first=True)), (6, 3)),
    "gru-both-ways": (lambda: Recurrent(nn.GRU(3, 4, batch_first=True, bidirectional=True)), (5, 3)),
    "encoder": (Encoder, (5, 8)),
    "attention": (Attention, (5, 8)),
    "autoencoder": (Autoencoder, (1, 8, 8)),
}


def exported(module, shape, *, dynamo):
    """The module with a dynamic batch, and with its BatchNorm, which exporters else fold into convolutions."""
    x = torch.randn(2, *shape)
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.onnx.export(
            module, (x,), dynamo=True, dynamic_shapes=({0: batch},), optimize=False, verbose=False
        )
        return program.model_proto
    file = io.BytesIO()
    torch.onnx.export(
        module, (x,), file, dynamo=False, opset_version=18, dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        input_names=["x"], output_names=["y"], training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def module_of(name):
    """A model whose every tensor has values of its own, so that those of the exporter find theirs in PyTorch."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    module = build()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    return module, shape


def state_of(module):
    """PyTorch's state under our names: a running variance is kept as its root."""
    state = {k: v.detach().numpy() for k, v in module.state_dict().items() if v.is_floating_point()}
    return {
        k + ".root" * k.endswith("running_var"): np.sqrt(v) if k.endswith("running_var") else v
        for k, v in state.items()
    }


def defined(key, value):
    """A tensor without the bias of attention's keys.

    No answer depends on it, so its gradient is rounding alone, which Adam scales up to whole steps.
    """
    if key == "key.bias":
        return value[:0]
    if key.endswith("in_proj_bias"):
        queries, _, values = np.split(value, 3)
        return np.concatenate([queries, values])
    return value


def assert_twenty_equal_steps(path, module, shape, model, **options):
    """Losses and every tensor of the same name agree after the same steps on the same batches."""
    kind = options.setdefault("optimizer", "sgd")
    rate, tolerance = {"sgd": (0.05, 1e-4), "adam": (0.005, 1e-3)}[kind]
    session = TrainingSession(compile_training(model, quantize="none", **options).save(path / "net.bundle"))
    exact = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | state_of(module)
    session.load({key: exact.get(key, value) for key, value in session.params.items()})
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[kind](module.parameters(), lr=rate)
    ours, theirs = [], []
    for _ in range(STEPS):
        x, y = torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
        ours.append(session.step(x.numpy(), y.numpy(), rate))

    np.testing.assert_allclose(ours, theirs, rtol=tolerance)
    found, compared = session.params, set()
    for key, value in state_of(module).items():
        if key in found and value.shape == found[key].shape:
            ours, theirs = defined(key, found[key]), defined(key, value)
            assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs), key
            compared.add(key)
    assert len(compared) >= 2
    return compared


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [(n, False) for n in MODELS] + [(n, True) for n in ("cnn", "lstm", "attention", "autoencoder")],
)
def test_twenty_steps_equal_pytorch(tmp_path, name, dynamo):
    """Losses and parameters of twenty SGD steps agree with PyTorch's autograd to 1e-4 of their norm."""
    if dynamo:
        pytest.importorskip("onnxscript")
    module, shape = module_of(name)
    module.eval()

    assert_twenty_equal_steps(
        tmp_path, module, shape, exported(module, shape, dynamo=dynamo), batch_norm="frozen"
    )


@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_of_adam_equal_pytorch(tmp_path, name):
    """With Adam they agree to 1e-3 of their norm."""
    module, shape = module_of(name)
    module.eval()
    model = exported(module, shape, dynamo=False)

    assert_twenty_equal_steps(tmp_path, module, shape, model, batch_norm="frozen", optimizer="adam")


@pytest.mark.parametrize("name", ["cnn", "ds-cnn"])
def test_batch_normalization_trains_like_pytorch(tmp_path, name):
    """In training mode the batch's moments normalise, and running means and deviations follow PyTorch's."""
    module, shape = module_of(name)
    model = exported(module.eval(), shape, dynamo=False)

    compared = assert_twenty_equal_steps(tmp_path, module.train(), shape, model, batch_norm="train")

    assert {"1.running_mean", "1.running_var.root"} <= compared


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["ds-cnn", "attention"])
def test_a_fresh_model_trains_like_pytorch(tmp_path, name, dynamo):
    """Biases of zero and copied layers, which the older exporter merges, are trained one by one as in PyTorch."""
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    build, shape = MODELS[name]
    module = build()
    model = exported(module.eval(), shape, dynamo=dynamo)
    compiled = compile_training(model, optimizer="sgd", quantize="none")
    session = TrainingSession(compiled.save(tmp_path / "net.bundle"))
    optimizer = torch.optim.SGD(module.train().parameters(), lr=RATE)
    ours, theirs = [], []
    for _ in range(STEPS):
        x, y = torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
        ours.append(session.step(x.numpy(), y.numpy(), RATE))

    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    count = sum(p.numel() for p in module.parameters())
    assert compiled.manifest.parameters == count


class Again(nn.Module):
    """A fresh normalisation that is applied twice, and a layer that shares another's weight."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.norm(x)
        return self.head(self.norm(torch.relu(self.first(x))) + self.second(x))


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_what_a_module_shares_stays_shared(dynamo):
    """A layer that is applied twice, even fresh, and a shared weight are each one tensor."""
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = Again().eval()
    compiled = compile_training(exported(module, (5,), dynamo=dynamo), quantize="none")

    assert compiled.manifest.parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["cnn", "gru"])
def test_a_model_exported_for_one_batch_size_trains(tmp_path, name, dynamo):
    """Exported as PyTorch does by default, for the example's batch, a model trains at another size."""
    if dynamo:
        pytest.importorskip("onnxscript")
    module, shape = module_of(name)
    path = tmp_path / "m.onnx"
    torch.onnx.export(module.eval(), (torch.randn(1, *shape),), path, dynamo=dynamo)
    session = TrainingSession(
        compile_training(path, optimizer="sgd", quantize="none").save(tmp_path / "net.bundle")
    )
    x, y = torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))
    loss = nn.functional.cross_entropy(module(x), y).item()

    assert session.step(x.numpy(), y.numpy(), RATE) == pytest.approx(loss, rel=1e-4)
