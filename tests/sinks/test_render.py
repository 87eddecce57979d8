"""`render` and `Renderer`: what outputs look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partime_async.errors import ConfigurationError, FrameError
from partime_async.sinks import Layout, Renderer, render
from partime_async.sinks.draw import GLYPHS, colour_map, draw_text, fit, interpolated, resized
from partime_async.sources import Scene

IMAGE = Scene(size=(80, 60)).image(0)


def spot(*, at: tuple[int, int] = (2, 3), level: float = 1.0) -> torch.Tensor:
    """Make feature maps that are strong at one place."""
    maps = torch.zeros(1, 4, 6, 8)
    maps[0, :, at[0], at[1]] = level
    return maps


def test_render_of_a_picture_gives_the_picture() -> None:
    """Three channels in [0, 1] are shown as they are."""
    value = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    assert np.array_equal(render(value, None), IMAGE)
    assert render(value.to(torch.float64), IMAGE, size=(40, 60)).shape == (60, 40, 3)


def test_render_of_one_channel_is_grey() -> None:
    """One channel in [0, 1] is shown in grey, clipped where it overshoots."""
    ramp = torch.linspace(-0.05, 1.05, 12).reshape(1, 1, 3, 4)
    picture = render(ramp, None)
    assert picture.shape == (3, 4, 3)
    assert (picture[0, 0] == 0).all()
    assert (picture[-1, -1] == 255).all()
    assert np.array_equal(picture[..., 0], picture[..., 2])


def test_render_of_feature_maps_is_hot_where_they_are_strong() -> None:
    """Other channels become a heat map of their energy, of either sign."""
    picture = render(spot(level=-5.0), None)
    assert picture.shape == (6, 8, 3)
    assert np.array_equal(picture[2, 3], colour_map()[255])
    assert np.array_equal(picture[0, 0], colour_map()[0])


def test_render_of_feature_maps_over_an_image_shows_both() -> None:
    """The heat lies over the input, in the input's size: cold places show it in grey, hot ones are bright."""
    picture = render(spot(), IMAGE)
    assert picture.shape == IMAGE.shape
    assert picture[25, 35].mean() > 150
    cold = picture[-15:, -30:].astype(int)
    assert np.ptp(cold, axis=2).mean() < 25
    assert np.corrcoef(cold.mean(axis=2).ravel(), IMAGE[-15:, -30:].mean(axis=2).ravel())[0, 1] > 0.8


def test_render_with_another_shape_keeps_the_images_shape() -> None:
    """A size of another shape gets bars at the sides; nothing is distorted, and heat lies only on the picture."""
    picture = render(spot(at=(0, 0)), IMAGE, size=(200, 60))
    assert picture.shape == (60, 200, 3)
    assert np.ptp(picture[:, :60].reshape(-1, 3), axis=0).max() == 0
    assert np.ptp(picture[:, -60:].reshape(-1, 3), axis=0).max() == 0
    assert picture[2, 62].mean() > 150


def test_renderer_beside_draws_the_image_and_the_map() -> None:
    """Side by side, the left half is the input itself and the right half the map."""
    picture = Renderer(layout=Layout.BESIDE).render(spot(), IMAGE)
    assert picture.shape == (60, 160, 3)
    assert np.array_equal(picture[:, :80], IMAGE)
    assert picture[25, 80 + 35].mean() > 180
    assert Renderer(layout=Layout.BESIDE, size=(101, 50)).render(spot(), IMAGE).shape == (50, 101, 3)


def test_render_of_a_vector_draws_bars_under_the_image() -> None:
    """The input stays whole above; the largest values come below, longest first."""
    logits = torch.tensor([[0.1, 9.0, -3.0, 5.0, 2.0, 1.0, 0.5]])
    picture = render(logits, IMAGE)
    assert np.array_equal(picture[:60], IMAGE)
    bright = (picture[60:].astype(int).sum(axis=2) > 230).sum(axis=1)
    rows = bright[[4 + 9 * place for place in range(5)]]
    assert (np.diff(rows) < 0).all()


def test_render_of_probabilities_draws_them_from_zero_to_one() -> None:
    """Values that add up to one are shown as shares: a half fills half its row."""
    picture = render(torch.tensor([[0.5, 0.5, 0.0]]), None, size=(160, 30))
    row = picture[3, 13:157].astype(int).sum(axis=1)
    assert (row > 230).sum() == pytest.approx(72, abs=4)


@pytest.mark.parametrize("size", [(16, 4), (8, 8), (300, 200)])
def test_render_of_a_vector_fits_any_size(size: tuple[int, int]) -> None:
    """Bars are drawn as far as they fit, with or without an input."""
    logits = torch.randn(1, 1000)
    assert render(logits, IMAGE, size=size).shape == (size[1], size[0], 3)
    assert render(logits, None, size=size).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 7), (1, 1), (1, 5, 6), (2, 3, 4, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_render_of_any_shape_and_dtype_gives_a_picture(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whatever a network gives, of one to four dimensions, something is drawn."""
    output = torch.ones(shape).to(dtype)
    for image in (None, IMAGE):
        picture = render(output, image, size=(40, 30))
        assert picture.dtype == np.uint8
        assert picture.shape == (30, 40, 3)


def test_render_of_a_tuple_draws_the_maps_in_it() -> None:
    """Of several tensors the first with four dimensions is drawn, else the first; gradients do not matter."""
    maps = spot().requires_grad_()
    assert np.array_equal(render((torch.ones(1, 3), maps), IMAGE), render(maps, IMAGE))
    assert np.array_equal(render((torch.ones(1, 3), torch.ones(1)), IMAGE), render(torch.ones(1, 3), IMAGE))


def test_render_of_values_that_are_not_finite_counts_them_as_zero() -> None:
    """A network that diverged is still drawn."""
    maps = spot()
    maps[0, :, 0, 0] = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0])
    assert np.array_equal(render(maps, IMAGE), render(spot(), IMAGE))
    render(torch.full((1, 5), float("nan")), IMAGE)


def test_renderer_follows_a_change_of_range_slowly() -> None:
    """A sudden change of level neither saturates for ever nor shows at once."""
    renderer = Renderer()
    levels = [renderer.render(spot(level=1.0))[2, 3].mean()]
    levels += [renderer.render(spot(level=0.2))[2, 3].mean() for _ in range(80)]
    assert levels[0] > 220
    assert levels[1] < 110
    assert levels[-1] > 210
    assert (np.diff(levels[1:]) >= 0).all()


def test_renderer_keeps_its_decision_while_the_shape_stays() -> None:
    """A picture that once leaves [0, 1] stays a picture; another shape is decided anew."""
    renderer = Renderer()
    renderer.render(torch.full((1, 3, 4, 4), 0.5))
    assert (renderer.render(torch.full((1, 3, 4, 4), 7.0)) == 255).all()
    assert not (renderer.render(torch.arange(75.0).reshape(1, 3, 5, 5)) == 255).all()


def test_render_does_not_write_into_its_input() -> None:
    """What is drawn is new: the input picture and the output stay as they are."""
    image, maps = IMAGE.copy(), spot()
    picture = render(maps, image)
    picture[:] = 0
    assert np.array_equal(image, IMAGE)
    assert torch.equal(maps, spot())


def test_render_of_what_cannot_be_drawn_is_refused() -> None:
    """Too many dimensions, empty outputs, wrong pictures and sizes are named."""
    with pytest.raises(FrameError, match=r"shape \(1, 2, 3, 4, 5\) cannot be drawn"):
        render(torch.ones(1, 2, 3, 4, 5), None)
    with pytest.raises(FrameError, match=r"shape \(1, 0\) cannot be drawn"):
        render(torch.ones(1, 0), None)
    with pytest.raises(FrameError, match="a picture is uint8"):
        render(torch.ones(1, 2), np.zeros((3, 3), np.uint8))
    with pytest.raises(ConfigurationError, match="no picture size"):
        Renderer(size=(0, 3))


def test_colour_map_grows_evenly_lighter() -> None:
    """The lightness of the colours rises from dark to light in even steps."""
    linear = (colour_map() / 255.0) ** 2.2
    lightness = np.cbrt(linear @ np.array([0.2126, 0.7152, 0.0722]))
    steps = np.diff(lightness[::15])
    assert (steps > 0).all()
    assert steps.max() < 2.5 * steps.min()


def test_resized_keeps_means_and_places() -> None:
    """Shrinking averages, growing interpolates, and nothing moves."""
    assert resized(IMAGE, (80, 60)) is IMAGE
    for size in ((40, 30), (20, 60), (13, 7), (160, 120)):
        small = resized(IMAGE, size)
        assert small.shape == (size[1], size[0], 3)
        assert small.mean() == pytest.approx(IMAGE.mean(), abs=4)
    ramp = np.linspace(0.0, 1.0, 8, dtype=np.float32)[None].repeat(3, 0)
    assert (np.diff(interpolated(ramp, (40, 9)), axis=1) >= 0).all()


def test_fit_keeps_the_shape() -> None:
    """The largest size inside a canvas touches two of its sides."""
    assert fit((640, 272), (320, 240)) == (320, 136)
    assert fit((10, 1000), (100, 100)) == (1, 100)


@pytest.mark.parametrize("character", GLYPHS)
def test_draw_text_at_the_edge_is_clipped(character: str) -> None:
    """Characters are drawn where they fit, in their colour, and cut where they do not."""
    canvas = np.zeros((4, 5, 3), np.uint8)
    draw_text(canvas, character * 3, 1, -0, scale=2, colour=(9, 9, 9))
    assert set(np.unique(canvas)) <= {0, 9}
