"""How surprising a picture is."""

from __future__ import annotations

import numpy as np

from partime_async.serve.demo.surprise import Surprise

SHAPE = (3, 36, 48)


def noise(random: np.random.Generator, scale: float) -> np.ndarray:
    """Return the errors of a forecast that is right but for noise."""
    return (random.standard_normal(SHAPE) * scale).astype(np.float32)


def test_surprise_at_usual_errors_stays_cold() -> None:
    """Where errors are as large as ever, nothing glows, and there is no alarm."""
    random, surprise = np.random.default_rng(0), Surprise()
    heats = [surprise.update(noise(random, 0.05)) for _ in range(100)]
    assert max(float(heat.max()) for heat in heats[20:]) < 0.1
    assert not surprise.is_alarming


def test_surprise_at_an_unseen_object_glows_there_alone() -> None:
    """A place whose error is far above what is usual there is hot, the rest is not, and the alarm goes off."""
    random, surprise = np.random.default_rng(0), Surprise()
    for _ in range(100):
        surprise.update(noise(random, 0.02))
    error = noise(random, 0.02)
    error[:, 10:20, 10:20] += 0.5
    heat = surprise.update(error)
    assert surprise.ratio is not None
    inside, outside = surprise.ratio[10:20, 10:20].mean(), surprise.ratio[24:, 24:].mean()
    assert inside > 3 * outside
    assert heat[12:18, 12:18].min() > 0.9
    assert heat[24:, 24:].max() < 0.1
    assert surprise.is_alarming


def test_surprise_at_a_place_that_is_always_wrong_takes_it_for_usual() -> None:
    """A place that can never be forecast, such as a flickering lamp, is hot at first and cold after a while."""
    random, surprise = np.random.default_rng(0), Surprise()
    for _ in range(50):
        surprise.update(noise(random, 0.02))
    heats = []
    for _ in range(400):
        error = noise(random, 0.02)
        error[:, 5:15, 5:15] += 0.3 * random.choice([-1, 1])
        heats.append(float(surprise.update(error)[7:13, 7:13].mean()))
    assert heats[0] > 0.9
    assert heats[-1] < 0.2


def test_surprise_of_a_still_and_black_picture_is_none() -> None:
    """Errors of zero, as of a covered camera, are no surprise and no division by zero; nor is a new size."""
    surprise = Surprise()
    for shape in (SHAPE, (3, 10, 12)):
        for _ in range(5):
            heat = surprise.update(np.zeros(shape, np.float32))
        assert heat.shape == shape[1:]
        assert float(heat.max()) == 0.0


def test_surprise_skipped_fades_and_forgets_nothing() -> None:
    """A picture that says nothing lets the heat fade and teaches nothing about what is usual."""
    surprise = Surprise()
    assert float(surprise.fade().max()) == 0.0
    surprise.update(np.full(SHAPE, 0.01, np.float32))
    hot = surprise.update(np.full(SHAPE, 0.5, np.float32))
    faded = surprise.fade()
    assert 0.0 < float(faded.max()) < float(hot.max())
    for _ in range(60):
        faded = surprise.fade()
    assert float(faded.max()) < 0.01
