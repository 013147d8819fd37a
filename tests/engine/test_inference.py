"""Logits at any resolution against plain restatements of each option."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stand_ins import CLASSES, Colour, Tiny
from torch import Tensor

from segshift.engine.inference import (
    Options,
    _starts,
    autocast,
    check_predictors,
    class_ids,
    decide,
    evaluating,
    logits_at,
)
from segshift.errors import UserError
from segshift.types import Prediction


def image(height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def up(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def evaluated(net: Tiny, picture: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        prediction: Prediction = net(picture)
    return prediction.logits


def test_default_is_one_upsampled_pass() -> None:
    net, x = Tiny(), image()
    assert torch.allclose(logits_at([net], x, (65, 99)), up(evaluated(net, x), (65, 99)), atol=1e-6)


def test_ensemble_adds_halves_of_upsampled_logits() -> None:
    first, second, x = Tiny(seed=0), Tiny(seed=1), image()
    wanted = 0.5 * up(evaluated(first, x), (64, 96)) + 0.5 * up(evaluated(second, x), (64, 96))
    assert torch.allclose(logits_at([first, second], x, (64, 96)), wanted, atol=1e-6)


def test_flip_averages_the_mirrored_pass() -> None:
    net, x = Tiny(), image()
    mirrored = up(evaluated(net, x.flip(-1)), (64, 96)).flip(-1)
    wanted = (up(evaluated(net, x), (64, 96)) + mirrored) / 2
    assert torch.allclose(logits_at([net], x, (64, 96), Options(flip=True)), wanted, atol=1e-6)


def test_scales_average_upsampled_logits() -> None:
    net, x = Tiny(), image()
    larger = F.interpolate(x, (48, 72), mode="bilinear", align_corners=False, antialias=True)
    wanted = (up(evaluated(net, x), (64, 96)) + up(evaluated(net, larger), (64, 96))) / 2
    assert torch.allclose(logits_at([net], x, (64, 96), Options(scales=(1, 1.5))), wanted, atol=1e-6)


def test_windows_average_where_they_overlap() -> None:
    net, x = Tiny(), image(32, 48)
    total, count = torch.zeros(2, 3, 32, 48), torch.zeros(32, 48)
    for left in (0, 12, 24):
        total[..., left : left + 24] += up(evaluated(net, x[..., left : left + 24]), (32, 24))
        count[:, left : left + 24] += 1
    options = Options(window=(24, 100), overlap=0.5)
    assert torch.allclose(logits_at([net], x, (64, 96), options), up(total / count, (64, 96)), atol=1e-6)


def test_a_window_as_large_as_the_image_changes_nothing_at_the_images_size() -> None:
    net, x = Tiny(), image()
    whole = logits_at([net], x, (32, 48))
    assert torch.allclose(logits_at([net], x, (32, 48), Options(window=(999, 999))), whole, atol=1e-6)


@settings(max_examples=200)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 0.95))
def test_windows_cover_every_pixel(length: int, window: int, overlap: float) -> None:
    window = min(window, length)
    starts = _starts(length, window, overlap)
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))


def test_modes_come_back_even_after_an_error() -> None:
    net = Tiny().train()
    net.get_submodule("norm").eval()
    before = [module.training for module in net.modules()]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    logits_at([net], image(), (8, 8))
    with evaluating([net]):
        assert not any(module.training for module in net.modules())
    with pytest.raises(RuntimeError):
        logits_at([net], image()[:, :, :2], (8, 8))  # smaller than the kernel
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_no_graph_is_kept_and_nan_is_refused() -> None:
    net = Tiny()
    assert not logits_at([net], image(), (8, 8)).requires_grad
    torch.nn.init.constant_(net.head.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        logits_at([net], image(), (8, 8))


def test_autocast_gives_float32_near_the_full_precision() -> None:
    net, x = Tiny(), image()
    with autocast(torch.device("cpu"), "bf16"):
        half = logits_at([net], x, (64, 96), Options(flip=True, window=(24, 24)))
    full = logits_at([net], x, (64, 96), Options(flip=True, window=(24, 24)))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05
    with pytest.raises(UserError, match="fp32 or bf16"):
        autocast(torch.device("cpu"), "fp8")


def test_decide_is_softmax_and_argmax() -> None:
    logits = logits_at([Tiny()], image(), (33, 47))
    confidence, ids = logits.softmax(dim=1).max(dim=1)
    assert torch.equal(class_ids(logits), ids.byte())
    got_ids, got_confidence = decide(logits.clone())
    assert torch.equal(got_ids, ids.byte())
    assert torch.allclose(got_confidence, confidence, atol=1e-6)


def test_options_and_predictors_are_checked() -> None:
    for wrong in ({"scales": ()}, {"scales": (0.0,)}, {"window": (0, 5)}, {"overlap": 1.0}, {"flips": True}):
        with pytest.raises(ValidationError):
            Options.model_validate(wrong)
    check_predictors([Colour()], CLASSES)
    with pytest.raises(UserError, match="predicts 5 classes, the class list has 3"):
        check_predictors([Tiny(5)], CLASSES)
    with pytest.raises(UserError, match="no model"):
        check_predictors([], CLASSES)
