"""Reference networks built from code: `python -m examples.models NAME --out FILE` writes one."""

from examples.models.autoencoder import autoencoder
from examples.models.ds_cnn import ds_cnn
from examples.models.gru import gru
from examples.models.mobilenet import mobilenet
from examples.models.resnet import resnet
from examples.models.transformer import transformer

MODELS = {
    "ds-cnn": ds_cnn,
    "mobilenet": mobilenet,
    "resnet-8": resnet,
    "autoencoder": autoencoder,
    "gru": gru,
    "transformer": transformer,
}
