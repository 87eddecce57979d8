"""Multi-layer perceptrons."""

from __future__ import annotations

from torch import nn

from partime_async.errors import ConfigurationError


def mlp(
    *, layers: int = 16, width: int = 256, in_features: int | None = None, out_features: int | None = None
) -> nn.Sequential:
    """Build linear layers with a ReLU between them.

    Args:
        layers: How many linear layers.
        width: Features of the hidden ones, and of input and output unless given.
        in_features: Features of a frame, ``(batch, in_features)``.
        out_features: Features of the output.

    Raises:
        ConfigurationError: A size is impossible; the caller is at fault.
    """
    sizes = [
        width if in_features is None else in_features,
        *[width] * (layers - 1),
        width if out_features is None else out_features,
    ]
    if layers < 1 or min(sizes) < 1:
        raise ConfigurationError(f"no network has {layers} linear layer(s) of sizes {sizes}. Give numbers from 1.")
    model = nn.Sequential()
    for index in range(layers):
        linear = nn.Linear(sizes[index], sizes[index + 1])
        # torch's default shrinks the signal layer by layer: gradients vanish, and a test of learning learns nothing.
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        model.add_module(f"linear{index + 1}", linear)
        if index + 1 < layers:
            model.add_module(f"relu{index + 1}", nn.ReLU())
    return model
