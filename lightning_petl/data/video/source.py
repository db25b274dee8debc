"""What a split of videos holds, and the data sets that feed its clips to a loader."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_petl.data.loading import Batch, Finished, stacked
from lightning_petl.data.randomness import torch_seeded
from lightning_petl.data.samplers import Draw
from lightning_petl.data.sources import Sample, Samples
from lightning_petl.data.video.decoding import Decoding
from lightning_petl.data.video.sampling import Clip, TemporalSampling
from lightning_petl.data.video.transforms import ClipTransform
from lightning_petl.errors import DataError

Pick = Callable[[NDArray[np.float64]], Sequence[Clip]]
"""Chooses clips by the timestamps of a video."""


class Repeats(NamedTuple):
    """How much of what was read came twice because its video is shorter than a clip.

    Attributes:
        read: Videos that were read.
        videos: Those of them with a repeated frame.
        frames: Repeated frames, over all clips of a video, of the last time that each was read.
    """

    read: int
    videos: int
    frames: int


class VideoSource(Samples):
    """Videos in files. Holds no handle: files are opened where they are read, and closed.

    Args:
        split: Name of the split, for messages.
        samples: The files.
        root: Folder that `name` is relative to.
        decoding: What opens the files.
        list_file: The list that the samples' lines count in.
    """

    def __init__(
        self, split: str, samples: Sequence[Sample], root: Path, decoding: Decoding, list_file: Path | None = None
    ) -> None:
        self.split, self.samples, self.root, self.decoding, self.list_file = split, samples, root, decoding, list_file
        self._labels = [sample.label for sample in samples]
        # In shared memory: worker processes decode, and this one reports. -1 was not read.
        self._repeated = torch.full((len(samples),), -1, dtype=torch.int32)
        self._repeated.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Sequence[int]:
        """Class index of each video, -1 where none is known."""
        return self._labels

    def name(self, index: int) -> str:
        """The path relative to the root."""
        return os.path.relpath(self.samples[index].path, self.root)

    def clips(self, index: int, pick: Pick) -> Tensor:
        """Reads clips of one video; each frame is decoded once.

        Args:
            index: The video.
            pick: Chooses the clips, all of the same length.

        Returns:
            ``(clips, frames, h, w, 3)``, uint8.

        Raises:
            DataError: Naming the file, the index and the line of the list. No other video ever takes its place.
        """
        sample = self.samples[index]
        try:
            with self.decoding.open(sample.path) as video:
                chosen = pick(video.timestamps)
                frames = video.get(np.concatenate([clip.indices for clip in chosen]).tolist())
        except DataError as error:
            line = f", {self.list_file}:{sample.line}" if self.list_file and sample.line else ""
            where = f"{error.where}, sample {index} of {self.split}{line}"
            raise DataError(error.what, where=where, fix=error.fix) from error
        self._repeated[index] = sum(clip.repeated for clip in chosen)
        return frames.reshape(len(chosen), -1, *frames.shape[1:])

    def repeats(self, reduced: Callable[[Tensor], Tensor] = torch.clone) -> Repeats:
        """Counts repeated frames of the videos read so far, by any worker.

        Args:
            reduced: Makes one of the counts ``(samples,)`` of all processes, by the larger; -1 means not read.
        """
        counts = reduced(self._repeated)
        return Repeats(int((counts >= 0).sum()), int((counts > 0).sum()), int(counts.clamp(min=0).sum()))


class Clips(Dataset[tuple[Tensor, int]], Finished):
    """Videos as tensors, each with a number beside it.

    Workers hand pixels over as bytes: a float is four times as much to write, to share and to pin. The process that
    trains makes floats of them, where the accelerator can fetch them from (`finish`).

    Args:
        source: The videos.
        transform: What makes a tensor of frames.
        targets: The number of each sample: its label, or its index for prediction.
    """

    def __init__(self, source: VideoSource, transform: ClipTransform, targets: Sequence[int]) -> None:
        self.source, self.transform, self.targets = source, transform, targets

    def __len__(self) -> int:
        return len(self.source)

    @abstractmethod
    def cut(self, draw: int | Draw) -> Tensor:
        """Reads one sample and gives its frames their size and place: ``(..., 3, H, W)``, uint8.

        Raises:
            DataError: Its file cannot be read.
        """

    def __getitem__(self, draw: int | Draw) -> tuple[Tensor, int]:
        """Reads one sample, float32; a plain index is a draw in epoch 0.

        Raises:
            DataError: Its file cannot be read.
        """
        return self.transform.normalize(self.cut(draw)), self.targets[_index(draw)]

    def __getitems__(self, draws: Sequence[int | Draw]) -> tuple[Tensor, list[int]] | DataError:
        """Reads a batch for a `Loader`, ``(B, ..., H, W, 3)`` uint8; the loader raises the error that this returns.

        A worker's exception would reach the user as forty lines around the one that names the file.
        """
        try:
            # The channels go last, as they lie in memory.
            pixels = stacked(self.cut(draw).movedim(-3, -1) for draw in draws)
        except DataError as error:
            return error
        return pixels, [self.targets[_index(draw)] for draw in draws]

    def finish(self, batch: tuple[Tensor, list[int]]) -> Batch:
        """Normalises a batch of `__getitems__`: ``(B, ..., 3, H, W)`` float32, in pinned memory if there is a GPU."""
        pixels, numbers = batch
        pinned = torch.cuda.is_available()
        clips = self.transform.normalize(pixels.movedim(-1, -3), pinned)
        return clips, torch.tensor(numbers, pin_memory=pinned)


class TrainClips(Clips):
    """One random clip of each video, ``(T, 3, H, W)``.

    Args:
        source: The videos.
        transform: Random, the same for all frames of a clip.
        sampling: Chooses the frames.
        seed: With the epoch and the index, all that decides frames and transform.
    """

    def __init__(self, source: VideoSource, transform: ClipTransform, sampling: TemporalSampling, seed: int) -> None:
        super().__init__(source, transform, source.labels)
        self.sampling, self.seed = sampling, seed

    def cut(self, draw: int | Draw) -> Tensor:
        """Reads one clip; a plain index is a draw in epoch 0."""
        epoch, index = draw if isinstance(draw, Draw) else (0, draw)
        frames = self.source.clips(index, lambda times: [self.sampling.train(times, self.seed, epoch, index)])[0]
        # Not the worker's own stream: a sample then looks the same for any number of workers, and after a resume. Crop
        # and flip draw from torch, and RandAugment's draws follow from one of those.
        with torch_seeded(self.seed, epoch, index):
            return self.transform.cut(frames)


class EvalViews(Clips):
    """All views of each video, ``(V, T, 3, H, W)``.

    Args:
        source: The videos.
        transform: Makes the views of several clips.
        targets: See `Clips`.
        sampling: Chooses the frames.
        temporal_views: Clips of a video.
    """

    def __init__(
        self,
        source: VideoSource,
        transform: ClipTransform,
        targets: Sequence[int],
        sampling: TemporalSampling,
        temporal_views: int,
    ) -> None:
        super().__init__(source, transform, targets)
        self.sampling, self.temporal_views = sampling, temporal_views

    def cut(self, draw: int | Draw) -> Tensor:
        """Reads the views of one video."""
        clips = self.source.clips(_index(draw), lambda times: self.sampling.test(times, self.temporal_views))
        return self.transform.cut(clips)


def _index(draw: int | Draw) -> int:
    return draw.sample if isinstance(draw, Draw) else draw
