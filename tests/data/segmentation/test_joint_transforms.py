"""Joint transforms: image and mask stay together, masks keep their ids, and draws follow from seed, epoch and index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scenery
import torch
from PIL import Image
from torch import Tensor

from lightning_petl.data import InputConfig
from lightning_petl.data.randomness import seeded
from lightning_petl.data.segmentation import transforms
from lightning_petl.data.segmentation.masks import IGNORED
from lightning_petl.data.segmentation.transforms import Augmentation, EvalTransform, TrainTransform

PLAIN = InputConfig((0.0,) * 3, (1.0,) * 3, (32, 32), "nearest", 1.0, "short")
STILL = Augmentation(scale=(1.0, 1.0), cat_max_ratio=1.0, flip=0.0, photometric=False)
MOVING = Augmentation(scale=(0.5, 2.0), cat_max_ratio=0.75, flip=0.5, photometric=False)


def blocks(size: tuple[int, int], seed: int = 0, allowed: tuple[int, ...] = (0, 1, 2, 3, 255)) -> np.ndarray:
    """A mask of patches of 5 pixels, as masks have areas."""
    height, width = size
    small = scenery.ids((height // 5 + 1, width // 5 + 1), list(allowed), seed)
    return np.kron(small, np.ones((5, 5), dtype=np.uint8))[:height, :width]


def painted(mask: np.ndarray) -> Image.Image:
    """A picture whose red is the id."""
    return Image.fromarray(np.dstack([mask, 255 - mask, np.full_like(mask, 7)]))


def drawn(transform: TrainTransform, mask: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    with seeded(0, 0, seed):
        return transform(painted(mask), mask)


def test_nothing_drawn_is_nothing_changed() -> None:
    mask = blocks((32, 32))
    image, read = drawn(TrainTransform(PLAIN, STILL), mask, 0)
    assert (image.dtype, read.dtype, type(image), type(read)) == (torch.float32, torch.int64, Tensor, Tensor)
    np.testing.assert_array_equal(read.numpy(), mask)
    torch.testing.assert_close(image[0] * 255, torch.from_numpy(mask).float())


@pytest.mark.parametrize("size", [(32, 32), (20, 24), (45, 61), (61, 45), (300, 40), (7, 9)])
def test_image_and_mask_stay_together(size: tuple[int, int]) -> None:
    """Each pixel's red is its id, at any scale; padding is 0 and ignored."""
    mask = blocks(size)
    for seed in range(20):
        image, read = drawn(TrainTransform(PLAIN, MOVING), mask, seed)
        assert image.shape == (3, 32, 32)
        assert read.shape == (32, 32)
        red, blue = ((image[channel] * 255).round().long() for channel in (0, 2))
        inside = blue == 7
        assert torch.equal(red[inside], read[inside])
        assert (read[~inside] == IGNORED).all()
        assert (image[:, ~inside] == 0).all()
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert inside[:rows, :columns].all(), "padding is on the right and below"


@pytest.mark.parametrize("photometric", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_masks_never_get_an_id_that_was_not_there(interpolation: str, photometric: bool) -> None:
    config = replace(PLAIN, interpolation=interpolation)
    transform = TrainTransform(config, replace(MOVING, photometric=photometric))
    for seed in range(60):
        size = tuple(np.random.default_rng(seed).integers(6, 90, 2).tolist())
        mask = scenery.ids(size, [3, 7, 149], seed)  # 5 would be the mean of neighbours
        _, read = drawn(transform, mask, seed)
        assert set(read.unique().tolist()) <= {3, 7, 149, IGNORED}


@pytest.mark.parametrize(("size", "target"), [((40, 40), (10, 10)), ((40, 40), (80, 80)), ((31, 47), (13, 19))])
def test_masks_are_resampled_from_centre_to_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    rows = np.repeat(np.arange(size[0], dtype=np.uint8)[:, None], size[1], axis=1)
    read = transforms.resize_mask(rows, target)[:, 0]
    wanted = (np.arange(target[0]) + 0.5) * size[0] / target[0] - 0.5
    assert np.abs(read - wanted).max() <= 0.5


def test_padding_is_the_mean() -> None:
    config = InputConfig((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (32, 32), "bilinear", 1.0, "short")
    image, read = drawn(TrainTransform(config, replace(STILL, scale=(0.5, 0.5))), blocks((32, 32)), 0)
    assert (image[:, 16:] == 0).all()
    assert (read[16:] == IGNORED).all()
    assert (image[:, :16, :16] != 0).any()


def test_flip() -> None:
    mask = blocks((32, 32))
    image, read = drawn(TrainTransform(PLAIN, replace(STILL, flip=1.0)), mask, 0)
    np.testing.assert_array_equal(read.numpy(), mask[:, ::-1])
    torch.testing.assert_close(image[0] * 255, torch.from_numpy(mask[:, ::-1].copy()).float())


def test_flips_come_as_often_as_asked() -> None:
    mask = blocks((32, 32))
    transform = TrainTransform(PLAIN, replace(STILL, flip=0.25))
    flips = sum(not np.array_equal(drawn(transform, mask, seed)[1].numpy(), mask) for seed in range(400))
    assert 65 < flips < 135  # 100 expected; four standard deviations


def test_scale_covers_its_range() -> None:
    """A square of 32 pixels in a crop of 128: what is not padding tells the factor."""
    transform = TrainTransform(replace(PLAIN, image_size=(128, 128), crop_pct=1.0), replace(STILL, scale=(0.25, 1.0)))
    mask = np.zeros((32, 32), dtype=np.uint8)
    sides = [int((drawn(transform, mask, seed)[1] == 0).any(0).sum()) for seed in range(60)]
    assert min(sides) < 48
    assert max(sides) > 112
    assert all(32 <= side <= 128 for side in sides)


def test_a_class_covers_at_most_its_share_of_a_crop() -> None:
    """Left half one class, right half two: crops of the left alone are drawn anew."""
    mask = np.zeros((32, 128), dtype=np.uint8)
    mask[:, 64:] = blocks((32, 64), allowed=(1, 2))
    capped = TrainTransform(PLAIN, replace(STILL, cat_max_ratio=0.75))
    shares = [transforms.largest_share(drawn(capped, mask, seed)[1]) for seed in range(60)]
    free = [transforms.largest_share(drawn(TrainTransform(PLAIN, STILL), mask, seed)[1]) for seed in range(60)]
    assert max(shares) < 0.75
    assert sum(share >= 0.75 for share in free) > 15


def test_pixels_without_a_class_do_not_count_in_the_share() -> None:
    mask = torch.full((10, 10), IGNORED, dtype=torch.uint8)
    assert transforms.largest_share(mask) == 1  # no better than a single class
    mask[0, :4] = torch.tensor([5, 5, 5, 6], dtype=torch.uint8)
    assert transforms.largest_share(mask) == 0.75


def test_crops_without_any_class_are_drawn_anew() -> None:
    """Two classes in a strip of a mask that has none elsewhere."""
    mask = np.full((32, 160), IGNORED, dtype=np.uint8)
    mask[:, 64:80] = blocks((32, 16), allowed=(1, 2))
    empty = {
        cap: sum(
            bool((drawn(TrainTransform(PLAIN, replace(STILL, cat_max_ratio=cap)), mask, seed)[1] == IGNORED).all())
            for seed in range(60)
        )
        for cap in (0.75, 1.0)
    }
    assert empty[0.75] <= 3
    assert empty[1.0] > 25


@pytest.mark.parametrize("value", [IGNORED, 3])
@pytest.mark.parametrize(("cap", "draws"), [(0.75, 11), (1.0, 1)])
def test_a_crop_is_drawn_anew_ten_times(cap: float, value: int, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No crop of one value meets a cap; without a cap the first one is kept."""
    bounds: list[int] = []
    draw = transforms._below
    monkeypatch.setattr(transforms, "_below", lambda bound: (bounds.append(bound), draw(bound))[1])
    transform = TrainTransform(PLAIN, replace(STILL, cat_max_ratio=cap))
    drawn(transform, np.full((40, 50), value, dtype=np.uint8), 0)
    assert len(bounds) == 2 * draws  # top and left


@pytest.mark.parametrize("value", [IGNORED, 3])
def test_masks_of_one_value_are_legal(value: int) -> None:
    """No crop meets the cap; the last that was tried is taken."""
    image, read = drawn(TrainTransform(PLAIN, Augmentation()), np.full((40, 50), value, dtype=np.uint8), 0)
    assert set(read.unique().tolist()) <= {value, IGNORED}
    assert torch.isfinite(image).all()


def test_photometric_distortion_changes_the_picture_alone() -> None:
    mask = blocks((32, 32))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    config = replace(PLAIN, interpolation="bilinear")
    plain, distorted = (TrainTransform(config, replace(STILL, photometric=on)) for on in (False, True))
    changes = []
    for seed in range(40):
        with seeded(seed):
            before, mask_before = plain(photo, mask)
        with seeded(seed):
            after, mask_after = distorted(photo, mask)
        assert torch.equal(mask_before, mask_after)
        assert after.min() >= 0
        assert after.max() <= 1
        changes.append(float((after - before).abs().mean()))
    unchanged = sum(change < 1e-6 for change in changes)
    assert 0 < unchanged < 12  # all four left out: one in sixteen
    assert max(changes) > 0.1


def test_photometric_amounts() -> None:
    """Grey 100 under brightness and contrast stays within what their largest amounts give, and reaches near it."""
    grey = transforms.tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    values = []
    for seed in range(600):
        with seeded(seed):
            values.append(float(transforms._distort(grey).float().mean()))
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5 + 1
    assert min(values) < 45
    assert max(values) > 180


def test_draws_follow_from_their_key_and_leave_the_random_state() -> None:
    mask = blocks((60, 60))
    transform = TrainTransform(PLAIN, Augmentation())
    state = torch.get_rng_state()
    first, again, other = (drawn(transform, mask, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("size", "side", "fitted"),
    [
        ((100, 200), 50, (50, 100)),
        ((200, 100), 50, (100, 50)),
        ((100, 100), 64, (64, 64)),
        ((100, 1000), 50, (20, 200)),  # the longer side at most four times 50
        ((1, 400), 32, (1, 128)),
        ((683, 512), 512, (683, 512)),
    ],
)
def test_sizes(size: tuple[int, int], side: int, fitted: tuple[int, int]) -> None:
    assert transforms.fitted(*size, side) == fitted


def pixels(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("kind", "crop_pct", "size"),
    [("original", 1.0, (50, 70)), ("short", 1.0, (32, 45)), ("short", 0.8, (40, 56))],
)
def test_evaluation(kind: str, crop_pct: float, size: tuple[int, int]) -> None:
    config = InputConfig((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (32, 32), "bilinear", crop_pct, kind)
    photo = pixels(50, 70)
    image = EvalTransform(config)(photo)
    assert (image.shape, image.dtype, type(image)) == ((3, *size), torch.float32, Tensor)
    resized = photo.resize(size[::-1], Image.Resampling.BILINEAR)
    wanted = (np.asarray(resized) / 255 - np.array(config.mean)) / np.array(config.std)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("short_side", [32, 33, 47, 513, 1025])
def test_the_short_side_survives_the_file_header(short_side: int) -> None:
    """`InputConfig` keeps the crop's part of the shorter side, which gives the side back exactly."""
    config = replace(PLAIN, crop_pct=32 / short_side)
    assert transforms.short_side(InputConfig.from_dict(config.to_dict())) == short_side


@pytest.mark.parametrize("make", [lambda c: EvalTransform(c), lambda c: transforms.EvalTransform(replace(c))])
def test_other_evaluations_are_refused(make: Callable[[InputConfig], object]) -> None:
    with pytest.raises(Exception, match="choose from short, original"):
        make(replace(PLAIN, eval_transform="crop"))
