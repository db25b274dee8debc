"""Laws of sliding windows, scales and mirror images, on models whose scores are known."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import segmenters
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_petl import ConfigError, LinearProbe
from lightning_petl.tasks.inference import Inference


def image(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


def pointwise(images: Tensor) -> Tensor:
    """Scores that depend on each pixel alone."""
    return torch.stack([images[:, 0], images[:, 1] * images[:, 2], images.sum(1)], dim=1)


def by_window(images: Tensor) -> Tensor:
    """Scores that differ from window to window and within one."""
    ramp = torch.arange(images.shape[-1]).expand_as(images[:, 0]) + images.mean((1, 2, 3))[:, None, None]
    return torch.stack([ramp, images[:, 0]], dim=1)


def only(inference: Inference, score: Any, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    (found,) = inference(score, [x], [size or (x.shape[1], x.shape[2])])
    return found


@pytest.mark.parametrize("size", [(8, 8), (17, 23), (5, 40), (30, 6)])
@pytest.mark.parametrize("stride", [(8, 8), (3, 5), (1, 7)])
def test_windows_of_a_pointwise_model_give_the_whole(size: tuple[int, int], stride: tuple[int, int]) -> None:
    x = image(*size)
    for per_step in (1, 3, 100):
        found = only(Inference("slide", (8, 8), stride, per_step), pointwise, x)
        torch.testing.assert_close(found, pointwise(x[None])[0])


def test_overlaps_are_means_over_the_windows_that_hold_a_pixel() -> None:
    x = image(13, 11)
    inference = Inference("slide", (6, 5), (4, 2), per_step=3)
    tops, lefts = [0, 4, 7], [0, 2, 4, 6]
    total, counts = torch.zeros(2, 13, 11), torch.zeros(13, 11)
    for top in tops:
        for left in lefts:
            window = x[:, top : top + 6, left : left + 5]
            total[:, top : top + 6, left : left + 5] += by_window(window[None])[0]
            counts[top : top + 6, left : left + 5] += 1
    assert counts.min() == 1
    assert counts.max() == 6
    torch.testing.assert_close(only(inference, by_window, x), total / counts)


@pytest.mark.parametrize("size", [(20, 24), (32, 32), (9, 32), (32, 11)])
@pytest.mark.parametrize("kind", ["vit", "swin", "convnext"])
def test_a_window_that_covers_the_image_gives_the_whole(kind: str, size: tuple[int, int]) -> None:
    task = segmenters.new_task(kind).eval()
    x = image(*size)
    with torch.no_grad():
        whole = only(Inference(), task, x, (40, 50))
        slid = only(Inference("slide", (32, 32), (16, 16)), task, x, (40, 50))
    assert torch.equal(whole, slid)


@pytest.mark.parametrize("size", [(40, 50), (64, 64), (30, 100), (100, 7)])
@pytest.mark.parametrize("kind", segmenters.ONE_SIZE)
def test_small_images_are_filled_up_for_backbones_of_one_size(kind: str, size: tuple[int, int]) -> None:
    task = segmenters.new_task(kind, LinearProbe(), inference="slide").eval()
    x = image(*size)
    height, width = (max(64, side) for side in size)
    padded = F.pad(x, (0, width - size[1], 0, height - size[0]))
    with torch.no_grad():
        expected = only(Inference("slide", (64, 64)), task, padded)[:, : size[0], : size[1]]
        assert torch.equal(only(task.inference, task, x), expected)
        assert torch.equal(next(task.scores([x], [size])), expected)


@pytest.mark.parametrize("kind", segmenters.ONE_SIZE)
def test_scales_below_one_are_filled_up_for_backbones_of_one_size(kind: str) -> None:
    task = segmenters.new_task(kind, LinearProbe(), inference="slide", scales=(0.5,)).eval()
    x = image(64, 80)
    small = F.interpolate(x[None], size=(32, 40), mode="bilinear", antialias=True)
    with torch.no_grad():
        inner = task(F.pad(small, (0, 24, 0, 32)))[..., :32, :40]
        expected = F.interpolate(inner, size=(64, 80), mode="bilinear")[0]
        torch.testing.assert_close(next(task.scores([x], [(64, 80)])), expected)


@pytest.mark.parametrize("kind", segmenters.BACKBONES)
def test_backbones_of_any_size_get_smaller_windows(kind: str) -> None:
    task = segmenters.new_task(kind, inference="slide", window=(64, 64)).eval()
    assert not task.inference.fill
    x = image(20, 24)
    with torch.no_grad():
        assert torch.equal(next(task.scores([x], [(20, 24)])), task(x[None])[0])


def test_scores_are_resampled_to_the_masks_size() -> None:
    x = image(10, 14)
    expected = F.interpolate(pointwise(x[None]), size=(25, 9), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(only(Inference(), pointwise, x, (25, 9)), expected)


def test_probabilities_are_averaged_over_scales_and_mirror_images() -> None:
    x = image(12, 16)
    total = torch.zeros(2, 20, 30)
    for scale in (0.5, 1.0, 1.25):
        scaled = x[None]
        if scale != 1:
            size = [round(12 * scale), round(16 * scale)]
            scaled = F.interpolate(scaled, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
        for mirrored in (False, True):
            scores = by_window(scaled.flip(-1) if mirrored else scaled)
            scores = F.interpolate(scores, size=(20, 30), mode="bilinear", align_corners=False).softmax(1)
            total += (scores.flip(-1) if mirrored else scores)[0] / 6
    found = only(Inference(scales=(0.5, 1.0, 1.25), flip=True), by_window, x, (20, 30))
    torch.testing.assert_close(found.softmax(0), total)
    torch.testing.assert_close(found.exp(), total)


def test_a_mirror_image_changes_nothing_for_a_pointwise_model() -> None:
    x = image(9, 12)
    for inference in (Inference(flip=True), Inference("slide", (5, 5), (3, 3), flip=True)):
        torch.testing.assert_close(only(inference, pointwise, x).exp(), pointwise(x[None])[0].softmax(0))


def test_images_of_one_size_share_a_step_and_keep_their_order() -> None:
    images = [image(6, 8, seed=0), image(6, 8, seed=1), image(6, 8, seed=2), image(7, 8, seed=3), image(6, 8, seed=4)]
    batches: list[int] = []

    def counted(x: Tensor) -> Tensor:
        batches.append(len(x))
        return pointwise(x)

    found = list(Inference(per_step=2)(counted, images, [(6, 8)] * 5))
    assert batches == [2, 1, 1, 1]
    for x, scores in zip(images[:3], found[:3], strict=True):
        torch.testing.assert_close(scores, pointwise(x[None])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_half_precision_are_resized_as_single_ones(dtype: torch.dtype) -> None:
    x, seen = image(12, 16).to(dtype), []

    def kept(images: Tensor) -> Tensor:
        seen.append(images[0])
        return pointwise(images).float()

    only(Inference(scales=(0.5, 1.0, 1.25)), kept, x)
    assert [found.dtype for found in seen] == [dtype] * 3
    for found, size in zip(seen, [(6, 8), (12, 16), (15, 20)], strict=True):
        single = F.interpolate(x[None].float(), size=size, mode="bilinear", align_corners=False, antialias=size[0] < 12)
        assert torch.equal(found, single[0].to(dtype))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "tiles"}, r"model\.inference"),
        ({"window": (0, 4)}, r"model\.window"),
        ({"window": (8, 8), "stride": (9, 4)}, r"model\.stride"),
        ({"per_step": 0}, r"model\.windows_per_step"),
        ({"scales": ()}, r"model\.scales"),
        ({"scales": (0.0, 1.0)}, r"model\.scales"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Inference(**settings)


@pytest.mark.parametrize("option", ["window", "stride"])
def test_settings_of_windows_are_refused_for_whole_images(option: str) -> None:
    told = rf"^{option} has no effect with inference='whole' \[model\.{option}\] - .*slide"
    with pytest.raises(ConfigError, match=told):
        Inference("whole", **{option: (8, 8)})
    with pytest.raises(ConfigError, match=told):
        segmenters.new_task(**{option: (8, 8)})


PEAK = """
import pathlib, sys, torch
sys.path.insert(0, {tests!r})
import segmenters
torch.set_num_threads(1)
side = int(sys.argv[1])
task = segmenters.new_task("vit", inference="slide", window=(64, 64), stride=(64, 64), windows_per_step=2).eval()
def memory(field):  # of this program alone: getrusage's peak holds that of the process which started it
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
with torch.no_grad():
    next(task.scores([torch.zeros(3, 128, 128)], [(128, 128)]))
    image = torch.zeros(3, side, side)
    before = memory("VmRSS")  # the peak so far is that of the imports, which holds room for some of the scores
    next(task.scores([image], [(side, side)]))
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_memory_grows_by_the_scores_alone(request: pytest.FixtureRequest) -> None:
    """Of 3072 x 3072, whole attention would need over a hundred gigabytes; five classes' scores need 180 MiB."""
    side = 3072
    code = PEAK.format(tests=str(request.config.rootpath / "tests"))
    shown = subprocess.run(
        [sys.executable, "-c", code, str(side)], check=True, timeout=300, capture_output=True, text=True
    )
    scores = 5 * side * side * 4
    grown = int(shown.stdout.split()[-1])
    assert scores * 0.8 < grown < scores * 1.3 + 30 * 2**20
