"""Clips and views as a model gets them: the right frames in the right places, whoever reads them."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import layouts
import media
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_petl.data import DataWarning, InputConfig, VideoListData
from lightning_petl.data.loading import Loader
from lightning_petl.data.video import choose
from lightning_petl.data.video.transforms import Augmentation, ClipTransform, eval_transform, train_transform

CONFIG = InputConfig((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (64, 64), "bilinear", 1.0)
KINDS = ("long.mp4", "short.mp4", "open.mp4", "vp9.webm", "plain.avi", "b_frames.avi", "mpeg4.mp4", "irregular.mp4")
"""Files of 60 frames, 64x80 pixels."""


@pytest.fixture(scope="module")
def root(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of one file of each kind, for training; the same files under other names for test."""
    folder = tmp_path_factory.mktemp("clips")
    for split in ("train", "test"):
        lines = []
        for index, kind in enumerate(KINDS):
            layouts.put(videos, kind, folder / split / kind)
            lines.append(f"{split}/{kind} {index}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def data_of(root: Path, **options: object) -> VideoListData:
    given = {"frames": 4, "rate": 3, "image_size": 64, "batch_size": 3, **options}
    data = VideoListData(str(root), "train.txt", test_list="test.txt", **given)  # type: ignore[arg-type]
    data.input_config = CONFIG
    return data


def started(loader: Loader, start: str | None) -> Iterator[tuple[Tensor, Tensor]]:
    loader.multiprocessing_context = start
    return iter(loader)


def pixels(clips: Tensor) -> Tensor:
    """8-bit pixels again, ``(..., 64, 64, 3)``."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    return ((clips * std + mean) * 255).round().to(torch.uint8).movedim(-3, -1)


@pytest.mark.parametrize("timeout_s", [None, 60.0], ids=["in the worker", "watched"])
@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("workers", "start"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_the_right_frames_arrive(
    root: Path, reader: str, workers: int, start: str | None, timeout_s: float | None
) -> None:
    data = data_of(root, reader=reader, num_workers=workers, timeout_s=timeout_s, temporal_views=2, spatial_views=3)
    seen = 0
    for clips, labels in started(data.test_dataloader(), start):
        assert clips.shape[1:] == (6, 4, 3, 64, 64)
        assert (clips.dtype, labels.dtype) == (torch.float32, torch.int64)
        for views, label in zip(pixels(clips), labels.tolist(), strict=True):
            with choose(reader).open(str(root / "test" / KINDS[label])) as video:
                chosen = data.sampling.test(video.timestamps, 2)
            for time, clip in enumerate(chosen):
                left, _, right = views[3 * time : 3 * time + 3]
                whole = torch.cat([left, right[:, :, 48:]], dim=2)  # all 80 columns
                assert media.numbers(whole.numpy()) == clip.indices.tolist()
            seen += 1
    assert seen == 8


def test_views_equal_an_independent_computation(root: Path, videos: Path, tmp_path: Path) -> None:
    media.rotated(videos / "long.mp4", tmp_path / "upright.mp4", 90)  # 80 high, 64 wide
    for kind in ("odd.mp4", "one.mp4"):
        layouts.put(videos, kind, tmp_path / kind)
    (tmp_path / "train.txt").write_text("one.mp4 0\n")
    (tmp_path / "test.txt").write_text("odd.mp4 0\nupright.mp4 0\n")
    data = data_of(tmp_path, image_size=48, short_side=56, temporal_views=3, spatial_views=3, batch_size=1)
    for (views, _), name in zip(data.test_dataloader(), ("odd.mp4", "upright.mp4"), strict=True):
        with choose("pyav").open(str(tmp_path / name)) as video:
            clips = [video.get(clip.indices.tolist()) for clip in data.sampling.test(video.timestamps, 3)]
        assert torch.allclose(views[0], torch.stack(list(by_hand(clips, 48, 56))), atol=0.06)  # a level is 0.04
        assert (views[0] - torch.stack(list(by_hand(clips, 48, 56)))).abs().mean() < 0.01


def by_hand(clips: list[Tensor], side: int, short: int) -> Iterator[Tensor]:
    """The views of clips ``(T, h, w, 3)``: temporal views outside, first, centre and last crop inside."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    for clip in clips:
        height, width = clip.shape[1:3]
        size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        frames = torch.nn.functional.interpolate(
            clip.movedim(-1, 1).float(), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        frames = (frames / 255 - mean) / std
        long = max(size) - side
        other = (short - side) // 2
        for along in (0, round(long / 2), long):
            y, x = (other, along) if height <= width else (along, other)
            yield frames[:, :, y : y + side, x : x + side]


def test_training_crops_equal_an_independent_computation(root: Path) -> None:
    data = data_of(root, crop_scale=None, horizontal_flip=False, batch_size=8)
    loader = data.train_dataloader()
    clips, labels = next(iter(loader))
    order = [draw.sample for draw in loader.sampler]
    assert labels.tolist() == order
    for clip, index in zip(clips, order, strict=True):
        with choose("pyav").open(str(root / "train" / KINDS[index])) as video:
            frames = video.get(data.sampling.train(video.timestamps, 0, 0, index).indices.tolist())
        assert torch.equal(pixels(clip), frames[:, :, 8:72])


def test_validation_takes_the_centre_view_unless_it_is_told(root: Path) -> None:
    views = {"temporal_views": 2, "spatial_views": 3, "batch_size": 8}
    for more, count in (({}, 1), ({"views_in_validation": True}, 6)):
        data = VideoListData(
            str(root), "train.txt", "test.txt", image_size=64, frames=4, normalization="imagenet", **views, **more
        )
        clips, _ = next(iter(data.val_dataloader()))  # type: ignore[arg-type]
        assert clips.shape[1] == count


AUGMENTED = {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "image_size": 32, "frames": 3}


def epoch(data: VideoListData, number: int, start: str | None = None) -> Tensor:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    batches = list(started(loader, start if data.num_workers else None))
    order = torch.cat([labels for _, labels in batches]).argsort()
    return torch.cat([clips for clips, _ in batches])[order]


def test_training_clips_follow_from_seed_epoch_and_sample(root: Path) -> None:
    first = epoch(data_of(root, **AUGMENTED), 2)
    torch.manual_seed(77)
    random.seed(77)
    assert torch.equal(epoch(data_of(root, **AUGMENTED, batch_size=5), 2), first)
    for workers, timeout_s in ((1, None), (2, 60.0)):
        other = data_of(root, **AUGMENTED, num_workers=workers, timeout_s=timeout_s)
        assert torch.equal(epoch(other, 2, "fork"), first), workers
    for changed in (epoch(data_of(root, **AUGMENTED), 3), epoch(data_of(root, **AUGMENTED, seed=1), 2)):
        assert all(not torch.equal(one, other) for one, other in zip(changed, first, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"crop_scale": None, "horizontal_flip": False}, {"frames": 60, "rate": 1}],
    ids=["frames", "crops"],
)
def test_frames_and_crops_change_with_epoch_and_seed_each(root: Path, options: dict[str, object]) -> None:
    first = epoch(data_of(root, **options), 2)
    for changed in (epoch(data_of(root, **options), 3), epoch(data_of(root, **options, seed=1), 2)):
        same = [torch.equal(one, other) for one, other in zip(changed, first, strict=True)]
        assert sum(same) <= 1  # one of 49 starts may come again


@pytest.mark.slow
def test_training_clips_are_the_same_in_workers_that_start_anew(root: Path) -> None:
    other = data_of(root, **AUGMENTED, num_workers=2)
    assert torch.equal(epoch(other, 2, "spawn"), epoch(data_of(root, **AUGMENTED), 2))


def test_the_streams_of_the_process_are_left_alone(root: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    epoch(data_of(root, **AUGMENTED), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def of_one_frame(transform: ClipTransform, seed: int) -> Tensor:
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8))
    torch.manual_seed(seed)
    return transform(frame.expand(5, -1, -1, -1))


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(horizontal_flip=False),
        Augmentation(crop_scale=None),
        Augmentation(crop_scale=None, horizontal_flip=False, rand_augment="rand-m9-mstd0.5-inc1"),
        Augmentation(rand_augment="rand-m7-n4-mstd0.5-inc1"),
    ],
    ids=["crop", "flip", "RandAugment", "all"],
)
def test_what_is_random_is_the_same_for_all_frames(augmentation: Augmentation) -> None:
    config = InputConfig(CONFIG.mean, CONFIG.std, (32, 32), "bilinear", 1.0)
    transform = train_transform(config, 32, augmentation)
    drawn = [of_one_frame(transform, seed) for seed in range(24)]
    for clip in drawn:
        assert clip.shape == (5, 3, 32, 32)
        assert all(torch.equal(frame, clip[0]) for frame in clip)
    kinds = {tuple(clip[0].flatten().tolist()) for clip in drawn}
    assert len(kinds) == 2 if augmentation == Augmentation(crop_scale=None) else len(kinds) > 12
    assert torch.equal(of_one_frame(transform, 3), drawn[3])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_and_flips_are_those_of_torchvision(interpolation: str) -> None:
    config = InputConfig(CONFIG.mean, CONFIG.std, (48, 48), interpolation, 1.0)
    transform = train_transform(config, 48, Augmentation())
    crop = v2.RandomResizedCrop(48, interpolation=v2.InterpolationMode(interpolation), antialias=True)
    reference = v2.Compose([crop, v2.RandomHorizontalFlip()])
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8))
    for seed in range(20):
        torch.manual_seed(seed)
        ours = transform.cut(frames)
        torch.manual_seed(seed)
        theirs = reference(frames.movedim(-1, 1))
        assert (ours.int() - theirs.int()).abs().max() <= 1  # rounding: these flips come before the resizing


def test_nothing_is_random_where_nothing_is_asked_for() -> None:
    config = InputConfig(CONFIG.mean, CONFIG.std, (32, 32), "bilinear", 1.0)
    frames = torch.randint(0, 256, (4, 40, 56, 3), dtype=torch.uint8)
    train = train_transform(config, 36, Augmentation(crop_scale=None, horizontal_flip=False))(frames)
    assert torch.equal(train, eval_transform(config, 36, 1)(frames[None])[0])


def test_pixels_are_scaled_and_normalised() -> None:
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    out = eval_transform(CONFIG, 64, 1)(frames[None])[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    torch.testing.assert_close(out, (frames.movedim(-1, 1).double() / 255 - mean) / std, check_dtype=False)
    assert out.is_contiguous()


def test_data_sets_travel_without_readers(root: Path) -> None:
    data = data_of(root)
    dataset = data.train_dataset()
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert not [name for name, value in vars(copy.source).items() if "Reader" in type(value).__name__]
    assert torch.equal(copy[1][0], dataset[1][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_frames_are_counted_and_said_once(videos: Path, tmp_path: Path, workers: int) -> None:
    root = layouts.lists(videos, tmp_path)
    lines = "".join(f"clips/train {n}.mp4 {n % 2}\n" for n in (6, 7, 0))  # 3 frames, 1 frame, 60 frames
    (root / "test.txt").write_text(lines)
    (root / "train.txt").write_text("clips/val 0.mp4 0\nclips/val 1.mp4 1\n")
    data = VideoListData(
        str(root), "train.txt", test_list="test.txt", frames=4, rate=1, temporal_views=2, image_size=32,
        normalization="imagenet", num_workers=workers,
    )  # fmt: skip
    assert data.record()["repeated_frames"] == {}
    (clips, _) = next(iter(data.test_dataloader()))
    assert torch.equal(clips[0, 0, 2], clips[0, 0, 3])  # the third frame again
    assert all(torch.equal(frame, clips[1, 0, 0]) for frame in clips[1].flatten(0, 1))
    expected = {"videos_read": 3, "videos": 2, "frames": 2 * (1 + 3)}
    assert data.record()["repeated_frames"] == {"test": expected}
    with pytest.warns(DataWarning, match="2 videos of test have fewer frames than were asked of them; 8 frames came"):
        data.teardown("test")
    data.teardown("test")  # warnings are errors here


def test_the_record_says_what_was_read_with(root: Path) -> None:
    record = data_of(root, fps=12.0, temporal_views=4, spatial_views=3, timeout_s=30.0).record()
    assert [str(library).split()[0] for library in record["video_readers"]] == ["av", "decord"]  # type: ignore[attr-defined]
    assert record["timeout_s"] == 30
    assert record["views"] == {"temporal": 4, "spatial": 3}
    assert record["sampling"] == {
        "kind": "DenseSampling", "frames": 4, "short": "repeat_last", "rate": 3, "fps": 12.0
    }  # fmt: skip


TWO = """
import json, sys, torch, torch.distributed as dist
from lightning_petl.data import VideoListData
if __name__ == "__main__":
    rank, store, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    data = VideoListData(root, "train.txt", test_list="test.txt", frames=70, rate=1, image_size=32, batch_size=2,
                         normalization="imagenet", timeout_s=None)
    predicted = [i for _, indices in data.predict_dataloader() for i in indices.tolist()]
    loader = data.train_dataloader()
    trained = [sorted(draw.sample for draw in loader.sampler) for _ in [0]][0]
    print(json.dumps([predicted, trained, data.n_expected("test"), data.record()["repeated_frames"]]))
    dist.barrier()
"""


@pytest.mark.slow
def test_two_processes_read_each_video_once(root: Path, tmp_path: Path) -> None:
    import json

    words = [sys.executable, "-c", TWO]
    processes = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "store"), str(root)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    (predicted, trained, expected, repeats), (predicted1, trained1, _, repeats1) = map(json.loads, outputs)
    assert sorted(predicted + predicted1) == list(range(8))
    assert sorted(trained + trained1) == list(range(8))
    assert expected == 8
    # Over both: eight videos of 60 frames, of which 70 were asked.
    assert repeats == repeats1 == {"test": {"videos_read": 8, "videos": 8, "frames": 80}}
