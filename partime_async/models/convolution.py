"""The deep convolutional networks of the PARTIME paper."""

from __future__ import annotations

from torch import nn

from partime_async.errors import ConfigurationError


def deep_conv(
    *,
    layers: int = 30,
    channels: int = 32,
    kernel: int = 5,
    in_channels: int = 3,
    out_channels: int = 3,
    pool_every: int | None = None,
) -> nn.Sequential:
    """Build equal convolutions with ReLUs, then a convolution with a sigmoid that gives the output for every pixel.

    Args:
        layers: Hidden convolutions.
        channels: Filters of each.
        kernel: Odd side of the filters, in pixels; the resolution is kept.
        in_channels: Channels of a frame, ``(batch, in_channels, height, width)``.
        out_channels: Values for each pixel, 0 to 1, ``(batch, out_channels, height, width)``.
        pool_every: Halve height and width after every so many hidden convolutions but the last; None for never.

    Raises:
        ConfigurationError: A size is impossible; the caller is at fault.

    Source: PARTIME, arXiv 2210.09147, experiment A: 30 layers, frames of 256 and 1024 px.
    """
    if min(layers, channels, in_channels, out_channels, pool_every or 1) < 1 or kernel % 2 == 0:
        raise ConfigurationError(
            f"no network has {layers} layer(s) of {channels} filters {kernel}x{kernel} from {in_channels} to "
            f"{out_channels} channels, pooled every {pool_every}. Give numbers from 1, and an odd kernel."
        )
    model = nn.Sequential()
    for index in range(layers):
        if pool_every is not None and index > 0 and index % pool_every == 0:
            model.add_module(f"pool{index // pool_every}", nn.MaxPool2d(kernel_size=2))
        model.add_module(f"conv{index + 1}", _convolution(channels if index else in_channels, channels, kernel))
        model.add_module(f"relu{index + 1}", nn.ReLU())
    model.add_module("output", _convolution(channels, out_channels, kernel))
    model.add_module("sigmoid", nn.Sigmoid())
    return model


def frame_conv(
    *,
    layers: int = 30,
    channels: int = 32,
    kernel: int = 5,
    in_channels: int = 3,
    out_channels: int = 10,
    pool_every: int = 10,
) -> nn.Sequential:
    """Build a `deep_conv` that pools on its way and gives one output for the whole frame.

    Args:
        layers: Hidden convolutions.
        channels: Filters of each.
        kernel: Odd side of the filters, in pixels.
        in_channels: Channels of a frame, ``(batch, in_channels, height, width)``.
        out_channels: Values for the frame, 0 to 1, ``(batch, out_channels, 1, 1)``.
        pool_every: Halve height and width after every so many hidden convolutions but the last.

    Raises:
        ConfigurationError: A size is impossible; the caller is at fault.

    Source: PARTIME, arXiv 2210.09147, experiment B; its own code has 300 layers, pooled every 50.
    """
    model = deep_conv(
        layers=layers,
        channels=channels,
        kernel=kernel,
        in_channels=in_channels,
        out_channels=out_channels,
        pool_every=pool_every,
    )
    model.add_module("mean", nn.AdaptiveAvgPool2d(1))
    return model


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    # torch's default shrinks the signal layer by layer: after thirty of them every frame would give the same output.
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution
