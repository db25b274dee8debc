"""What the training loader of videos delivers, beside its reader alone.

The reader alone decodes the same frames of the same files in as many worker processes, and throws them away. The loader
crops, flips, normalises, batches and hands them over, too. Both take turns in one process, and ratios are taken per
round; the A/A row, the reader against itself, is the noise. The files are made here, in the size and length of
Something-Something v2 (240 lines, 12 frames a second, four seconds) or of Kinetics (256 lines, 30, ten seconds).

Workers hand over bytes, and the process that trains makes floats of them meanwhile; that needs a core of its own. On a
machine that other programs use, too, `--clock workers` counts the seconds of the processor that the workers and the
processes that decode for them take, and `--workers 0 --timeout 0 --clock processor` all, with the floats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from statistics import quantiles
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_petl.data import VideoListData
from lightning_petl.data.video.source import TrainClips

CODECS = {
    "h264": ("libx264", ".mp4", {"crf": "23", "preset": "veryfast", "threads": "1"}),
    "vp9": ("libvpx-vp9", ".webm", {"crf": "33", "b": "0", "cpu-used": "8", "threads": "1"}),
}
SETS = {"ssv2": (240, 426, 12, 48), "kinetics": (256, 340, 30, 300)}
"""Height, width, frames a second and number of frames."""

CLOCKS = ("wall", "processor", "workers")
GOAL = 0.9


class ReaderAlone(Dataset[int]):
    """The frames that training clips are made of, decoded and dropped."""

    def __init__(self, clips: TrainClips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> int:
        clips = self.clips
        pick = clips.sampling.train
        return len(clips.source.clips(index, lambda times: [pick(times, clips.seed, 0, index)])[0])


def write(path: Path, codec: str, like: str, seed: int) -> None:
    (name, _, settings), (height, width, fps, count) = CODECS[codec], SETS[like]
    size = height, width
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8 + 17, size[1] // 8 + 17, 3), dtype=np.uint8)
    texture = coarse.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(name, rate=Fraction(fps), options=settings)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for index in range(count):
            y, x = (abs(step * index % 256 - 128) for step in (2, 3))  # to and fro, without a cut
            frame = texture[y : y + size[0], x : x + size[1]] // 2 + rng.integers(0, 16, (*size, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode(None))


def data_of(folder: Path, options: argparse.Namespace) -> VideoListData:
    lines = []
    for index in range(options.videos):
        path = folder / f"{index}{CODECS[options.codec][1]}"
        write(path, options.codec, options.like, index)
        lines.append(f"{path.name} {index % 2}\n")
    (folder / "train.txt").write_text("".join(lines))
    return VideoListData(
        str(folder),
        "train.txt",
        image_size=224,
        normalization="imagenet",
        frames=options.frames,
        rate=options.rate,
        batch_size=options.batch,
        num_workers=options.workers,
        reader=options.reader,
        timeout_s=options.timeout or None,
    )


def seconds(loader: DataLoader[Any], clock: str) -> float:
    start = _time(loader, clock)
    for _ in loader:
        pass
    return _time(loader, clock) - start


def _time(loader: DataLoader[Any], clock: str) -> float:
    if clock != "workers":
        return {"wall": time.perf_counter, "processor": time.process_time}[clock]()
    workers = [] if loader._iterator is None else [process.pid for process in loader._iterator._workers]
    decoders = [int(pid) for own in workers for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    # The number that clock_getcpuclockid(3) gives for the clock of another process.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in (*workers, *decoders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--like", choices=SETS, default="ssv2")
    parser.add_argument("--codec", choices=CODECS, default="h264")
    parser.add_argument("--reader", default="auto")
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rate", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(Path(folder), options)
        clips = data.train_dataset()
        keep = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
        loaders: dict[str, DataLoader[Any]] = {
            "loader": data.train_dataloader(),
            "reader": DataLoader(ReaderAlone(clips), batch_size=options.batch, **keep),
            "reader again": DataLoader(ReaderAlone(clips), batch_size=options.batch, **keep),
        }
        order, rounds = list(loaders), []
        for _ in range(options.rounds + 1):
            rounds.append({name: seconds(loaders[name], options.clock) for name in order})
            order.append(order.pop(0))  # none is always the one behind another
    rounds = rounds[1:]
    fps = sorted(options.videos / times["loader"] for times in rounds)[len(rounds) // 2]
    readers = data.decoding.record()["video_readers"]
    print(
        f"{options.like}, {options.codec}, {readers}, {options.workers} workers, time-out "
        f"{options.timeout:g}, {options.frames} frames at rate {options.rate}, {options.clock} seconds: "
        f"{fps:.1f} clips/s"
    )
    for name in ("loader", "reader again"):
        low, middle, high = quantiles((times["reader"] / times[name] for times in rounds), n=4)
        note = f"goal: {GOAL}" if name == "loader" else "A/A: the noise"
        print(
            f"{name:>13} / reader, clips a second: {middle:.3f}  (half of the rounds: {low:.3f} to {high:.3f})   {note}"
        )


if __name__ == "__main__":
    main()
