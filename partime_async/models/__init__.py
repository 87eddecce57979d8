"""Networks to try the library with: plain `nn.Sequential`s, which know nothing of pipelines."""

from partime_async.models.convolution import deep_conv, frame_conv
from partime_async.models.dense import mlp
from partime_async.models.registry import build, describe, example_size
from partime_async.models.resnet import flat_state_dict, resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = [
    "build",
    "deep_conv",
    "describe",
    "example_size",
    "flat_state_dict",
    "frame_conv",
    "mlp",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]
