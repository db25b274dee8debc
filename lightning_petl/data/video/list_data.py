"""Videos named by list files."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.list_file import checked_classes, declared_classes, read_list
from lightning_petl.data.sources import Sample
from lightning_petl.data.video.module import VideoDataModule, VideoOptions
from lightning_petl.data.video.splits import Split


class VideoListData(VideoDataModule):
    """Videos named by list files, one ``path label`` a line with paths relative to ``root``, as for `ImageListData`.

    Args:
        root: Folder of the data set. Lists are relative to it too, unless absolute.
        train_list: List of the training split, or null if classes are named or counted.
        val_list: List of the validation split, or null.
        test_list: List of the test split, or null.
        class_names: Name of each label, in order; null names them "0", "1" and so on.
        num_classes: Number of classes; null takes it from ``class_names``, else from the training labels, which then
            have no gaps.
        allow_outside_root: Accept paths that lead out of ``root``, by ``..``, as absolute paths or through links.
        predict: Folder of videos to predict, any tree, or one video, relative to ``root`` unless absolute; null
            predicts the test split.
        limits: Sizes of frames to refuse before decoding.
        **options: See `VideoOptions`.

    Raises:
        DataError: A list or a video file is missing, lines are bad, or training shares files with another split.
        ConfigError: An option is out of its range, or class names and their number disagree.
    """

    split_suffix = "_list"

    def __init__(
        self,
        root: str,
        train_list: str | None,
        val_list: str | None = None,
        test_list: str | None = None,
        class_names: tuple[str, ...] | None = None,
        num_classes: int | None = None,
        allow_outside_root: bool = False,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(limits=limits, **options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        classes = declared_classes(class_names, num_classes, train_list)
        splits: dict[str, Split] = {}
        for name, file in (("train", train_list), ("val", val_list), ("test", test_list)):
            if file is None:
                continue
            count = None if classes is None else len(classes)
            missing: list[Sample] = []
            found = read_list(base / file, base, count, allow_outside_root, f"data.{name}_list", missing)
            splits[name] = Split(found, base, base / file, [s.path for s in missing], f"data.{name}_list")
            if name == "train" and classes is None:
                classes = checked_classes(found + missing, None, base / file)
        self.fill(splits, classes or (), predict=None if predict is None else base / predict)
