"""The base of the video data modules: their options, and how files become clips and views."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, Literal, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_petl.adapter import JSON
from lightning_petl.data.folder_tree import to_predict
from lightning_petl.data.input_choice import InputChoice
from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.module import PETLDataModule
from lightning_petl.data.notices import DataWarning
from lightning_petl.data.video.decoding import choose
from lightning_petl.data.video.files import VIDEOS
from lightning_petl.data.video.sampling import DenseSampling, SegmentSampling, Short, TemporalSampling
from lightning_petl.data.video.source import EvalViews, TrainClips, VideoSource
from lightning_petl.data.video.splits import Missing, Split, check
from lightning_petl.data.video.transforms import Augmentation, eval_transform, train_transform
from lightning_petl.errors import ConfigError, DataError

_ANY_INPUT = InputConfig((0.5,) * 3, (0.5,) * 3, (224, 224), "bilinear", 1.0)

Sampling = Literal["dense", "segments"]


class VideoOptions(TypedDict, total=False):
    """Options that all video data modules share.

    Args:
        frames: Frames of a clip (default 8).
        sampling: "dense" for frames at a fixed distance, "segments" for one of each equal part (default dense).
        rate: Distance of neighbouring frames of "dense", in frames; null is 4 (default null).
        fps: Frames per second that ``rate`` counts in, for clips of the same duration at any frame rate; null counts
            the video's own frames (default null).
        by_time: Cut "segments" by time, not by frames (default false).
        short: What fills a clip of a video with too few frames: "repeat_last" or "loop" (default repeat_last).
        temporal_views: Clips of each test video, spread evenly (default 1).
        spatial_views: Crops of each clip in test, 1 or 3 along the longer side (default 1).
        views_in_validation: Whether validation scores all views, too, and not the centre one alone (default false).
        batch_size: Videos in a batch, of each process (default 16).
        num_workers: Processes that read videos beside the training process; batches do not depend on it (default 0).
        image_size: Height and width of the input, pixels; null is the backbone's own (default null).
        short_side: Pixels that the shorter side of a frame is resized to outside of random crops; null is
            ``image_size`` (default null).
        normalization: "backbone", "imagenet" or "inception" (default backbone).
        mean: Explicit mean of each channel, in place of ``normalization`` (default null).
        std: Explicit standard deviation of each channel, with ``mean`` (default null).
        interpolation: Resampling filter: nearest, bilinear or bicubic (default bilinear).
        crop_scale: Smallest and largest part of the area that the random crops of training take; null for the centre
            crop in training, too (default 0.08 to 1).
        crop_ratio: Smallest and largest width to height of random crops (default 3/4 to 4/3).
        horizontal_flip: Flip half of the training clips; null is what the data set allows, which is yes but where
            direction is the label (default null).
        rand_augment: timm's text for RandAugment, as ``rand-m7-n4-mstd0.5-inc1``, the same for all frames of a clip;
            null for none (default null).
        reader: "pyav", "decord", or "auto" for PyAV where it is installed (default auto).
        timeout_s: Seconds that opening a file, or reading its frames, may take before the decoding process is ended
            and the file reported; null decodes without that process, and without an end (default 60).
        missing: Training videos that a list names and that are not there: "raise", or "drop" to count them and go on
            (default raise). Validation and test never go without.
        drop_last: Drop the training samples that do not fill a batch; another part in each epoch (default false).
        seed: Seed of the order, the frames and the augmentation of training (default 0).
    """

    frames: int
    sampling: Sampling
    rate: int | None
    fps: float | None
    by_time: bool
    short: Short
    temporal_views: int
    spatial_views: int
    views_in_validation: bool
    batch_size: int
    num_workers: int
    image_size: int | None
    short_side: int | None
    normalization: str
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str
    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    horizontal_flip: bool | None
    rand_augment: str | None
    reader: str
    timeout_s: float | None
    missing: Missing
    drop_last: bool
    seed: int


class VideoDataModule(PETLDataModule):
    """Video classification data; the options are those of `VideoOptions`, and ``limits``, sizes of frames to refuse.

    Training batches are ``(clips (B, T, 3, H, W) float32, labels (B,) int64)``. Validation and test batches are
    ``(clips (B, V, T, 3, H, W), labels (B,))`` with all views of a video, view ``temporal * spatial_views + spatial``;
    prediction batches have indices in place of labels: ``predict_names[i]`` is the video's name.

    Frames are exact, or the file is reported (`lightning_petl.data.video.reader`); no video takes another's place. What
    is random in a training clip follows from the seed, the epoch and the sample, and is the same for all its frames.

    A subclass calls ``super().__init__(limits=limits, **options)`` and then `fill`. It names ``limits`` itself, for the
    parser of configurations finds no fields of a class that a dictionary of options holds.
    """

    gives = "videos"

    flips: ClassVar[bool] = True
    """Whether a mirrored video has the same label."""

    give_labels: ClassVar[str] = "give a list with labels"
    """What to do about a list without labels, for messages."""

    def __init__(
        self,
        frames: int = 8,
        sampling: Sampling = "dense",
        rate: int | None = None,
        fps: float | None = None,
        by_time: bool = False,
        short: Short = "repeat_last",
        temporal_views: int = 1,
        spatial_views: int = 1,
        views_in_validation: bool = False,
        batch_size: int = 16,
        num_workers: int = 0,
        image_size: int | None = None,
        short_side: int | None = None,
        normalization: str = "backbone",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str = "bilinear",
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (0.75, 4 / 3),
        horizontal_flip: bool | None = None,
        rand_augment: str | None = None,
        reader: str = "auto",
        timeout_s: float | None = 60.0,
        missing: Missing = "raise",
        drop_last: bool = False,
        seed: int = 0,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        choice = InputChoice(image_size, normalization, mean, std, interpolation, 1.0, "crop")
        super().__init__(choice, batch_size, num_workers, drop_last, seed)
        if temporal_views < 1:
            raise ConfigError(f"temporal_views is {temporal_views}", where="data.temporal_views", fix="give 1 or more")
        if missing not in ("raise", "drop"):
            raise ConfigError(f"missing is {missing!r}", where="data.missing", fix="choose raise or drop")
        self.temporal_views, self.spatial_views = temporal_views, spatial_views
        self.views_in_validation, self.short_side = views_in_validation, short_side
        self.frames = frames
        self.sampling = _sampling(sampling, frames, short, rate, fps, by_time)
        flip = self.flips if horizontal_flip is None else horizontal_flip
        self.augmentation = Augmentation(crop_scale, crop_ratio, flip, rand_augment)
        self.decoding = choose(reader, timeout_s, limits)
        # Wrong arguments show here, not in epoch 1.
        given = replace(_ANY_INPUT, interpolation=interpolation)
        if image_size is not None:
            given = replace(given, image_size=(image_size, image_size))
        train_transform(given, given.image_size[0], self.augmentation)
        eval_transform(given, given.image_size[0], spatial_views)
        self.missing: Missing = missing
        self._sources: dict[str, VideoSource] = {}
        self._classes: tuple[str, ...] = ()
        self._dropped = 0
        self._unlabelled: dict[str, str] = {}

    def fill(self, splits: Mapping[str, Split], classes: Sequence[str], predict: Path | None = None) -> None:
        """Takes the videos of the data set, once all checks have passed.

        Args:
            splits: By the names "train", "val" and "test". A split without labels (-1) is for prediction only.
            classes: Names of the classes.
            predict: Folder of videos to predict, any tree, or one video; None predicts the test split.

        Raises:
            DataError: There is no video to predict; or see `lightning_petl.data.video.splits.check`.
        """
        if predict is not None:
            splits = {**splits, "predict": Split(*to_predict(predict, VIDEOS))}
        self._dropped = check(splits, classes, self.missing)
        self._classes = tuple(classes)
        sources = {
            name: VideoSource(name, split.samples, split.root, self.decoding, split.list_file)
            for name, split in splits.items()
        }
        if "predict" not in sources and "test" in sources:
            sources["predict"] = sources["test"]
        scored = (name for name in ("val", "test") if name in sources)
        self._unlabelled = {name: splits[name].option for name in scored if -1 in sources[name].labels}
        self._sources = {name: source for name, source in sources.items() if name not in self._unlabelled}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label ``i`` is ``classes[i]``."""
        return self._classes

    def source(self, split: str) -> VideoSource | None:
        """The videos of a split."""
        return self._sources.get(split)

    @property
    def input_config(self) -> InputConfig:
        """What frames are turned into: the options, with the backbone's own settings where they leave a choice.

        Raises:
            ConfigError: See `PETLDataModule.input_config`.
        """
        config = super().input_config
        side = min(config.image_size)
        return config if self.short_side is None else replace(config, crop_pct=min(1.0, side / self.short_side))

    @input_config.setter
    def input_config(self, backbone: InputConfig) -> None:
        self._backbone = backbone

    def check_input(self) -> None:
        """Builds the transform of evaluation, which raises where it cannot be.

        Raises:
            ConfigError: Something is left to the backbone, and none is known; or the settings contradict each other.
        """
        config = self.input_config
        eval_transform(config, self._short_side(config), self.spatial_views)

    def train_dataset(self) -> TrainClips:
        """The training videos, a random clip of each, with their labels."""
        config = self.input_config
        transform = train_transform(config, self._short_side(config), self.augmentation)
        return TrainClips(self._require("train"), transform, self.sampling, self.seed)

    def eval_dataset(self, split: str) -> EvalViews:
        """The videos of a split, all views of each, with their labels, or for prediction indices."""
        source, config = self._require(split), self.input_config
        one = split == "val" and not self.views_in_validation
        temporal, spatial = (1, 1) if one else (self.temporal_views, self.spatial_views)
        transform = eval_transform(config, self._short_side(config), spatial)
        targets: Sequence[int] = range(len(source)) if split == "predict" else source.labels
        return EvalViews(source, transform, targets, self.sampling, temporal)

    def record(self) -> dict[str, object]:
        """Reader, frames and views, and what was missing or came twice; counted over all processes."""
        repeats = {split: source.repeats(_of_all_processes) for split, source in self._distinct().items()}
        return {
            **self.decoding.record(),
            "sampling": self._sampling_record(),
            "views": {"temporal": self.temporal_views, "spatial": self.spatial_views},
            "missing_training_videos": self._dropped,
            "repeated_frames": {
                split: {"videos_read": counts.read, "videos": counts.videos, "frames": counts.frames}
                for split, counts in repeats.items()
                if counts.read
            },
        }

    def inputs_record(self) -> dict[str, JSON]:
        """How videos become clips: ``input``, and ``sampling``, which frames of a video are taken."""
        return {**super().inputs_record(), "sampling": self._sampling_record()}

    def _sampling_record(self) -> dict[str, JSON]:
        return {"kind": type(self.sampling).__name__, **asdict(self.sampling)}

    def teardown(self, stage: str) -> None:
        """Says how many videos were shorter than a clip, once for each split."""
        world, rank = self._place()
        part = f", of those that process {rank} of {world} read," if world > 1 else ""
        for split, source in self._distinct().items():
            counts = source.repeats()
            if counts.videos and source not in self._reported:
                self._reported.append(source)
                warnings.warn(
                    f"{counts.videos} videos of {split}{part} have fewer frames than were asked of them; "
                    f"{counts.frames} frames came again (data.short: {self.sampling.short})",
                    DataWarning,
                    stacklevel=2,
                )

    def _short_side(self, config: InputConfig) -> int:
        return config.image_size[0] if self.short_side is None else self.short_side

    def _distinct(self) -> dict[str, VideoSource]:
        """The sources by split; prediction of the test split is no split of its own."""
        test = self._sources.get("test")
        return {name: source for name, source in self._sources.items() if name == "test" or source is not test}

    def _require(self, split: str) -> VideoSource:
        if option := self._unlabelled.get(split):
            raise DataError(
                f"the {split} list has no labels", where=option, fix=f"{self.give_labels}, or use predict without them"
            )
        source = super()._require(split)
        assert isinstance(source, VideoSource)
        return source


def _sampling(
    kind: str, frames: int, short: Short, rate: int | None, fps: float | None, by_time: bool
) -> TemporalSampling:
    idle = {"dense": {"by_time": by_time}, "segments": {"rate": rate is not None, "fps": fps is not None}}
    if kind not in idle:
        raise ConfigError(f"sampling is {kind!r}", where="data.sampling", fix="choose dense or segments")
    for option, given in idle[kind].items():
        if given:
            raise ConfigError(
                f"{option} has no effect with sampling={kind!r}",
                where=f"data.{option}",
                fix=f"remove it or set data.sampling to {'segments' if kind == 'dense' else 'dense'}",
            )
    if kind == "segments":
        return SegmentSampling(frames, short, by_time)
    return DenseSampling(frames, short, 4 if rate is None else rate, fps)


def _of_all_processes(counts: Tensor) -> Tensor:
    """The larger of each count over all processes, each of which read a part."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else counts.device
    shared = counts.to(device, copy=True)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared.cpu()
