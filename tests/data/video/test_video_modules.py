"""The video data sets: their layouts, and each way in which lists and files can disagree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest

from lightning_petl.data import (
    DataWarning,
    HMDB51Data,
    KineticsData,
    SomethingSomethingV2Data,
    UCF101Data,
    VideoDataModule,
    VideoListData,
)
from lightning_petl.errors import ConfigError, DataError


def pairs(data: VideoDataModule, split: str) -> list[tuple[str, int]]:
    source = data.source(split)
    assert source is not None
    return [(source.name(i), label) for i, label in enumerate(source.labels)]


@pytest.fixture
def listed(videos: Path, tmp_path: Path) -> Path:
    return layouts.lists(videos, tmp_path)


def of_lists(root: Path, **options: object) -> VideoListData:
    given = {"val_list": "val.txt", "test_list": "test.txt", **options}
    return VideoListData(str(root), "train.txt", **given)  # type: ignore[arg-type]


def test_lists(listed: Path) -> None:
    data = of_lists(listed, class_names=("no", "yes"))
    assert data.classes == ("no", "yes")
    assert [data.n_expected(stage) for stage in ("fit", "validate", "test", "predict")] == [8, 4, 5, 5]
    assert pairs(data, "train")[:2] == [("clips/train 0.mp4", 0), ("clips/train 1.mp4", 1)]
    assert data.predict_names[2] == "clips/test 2.webm"


def test_bad_lines_of_lists_are_those_of_images(listed: Path) -> None:
    (listed / "train.txt").write_text("clips/train 0.mp4 0\nclips/train 1.mp4 x\n../x.mp4 1\nclips/train 2.webm 9\n")
    with pytest.raises(DataError) as caught:
        of_lists(listed, num_classes=2)
    for fault in ("3 bad lines", "train.txt:2: the label 'x'", "train.txt:3: ", "leads out of", "label 9 is not in"):
        assert fault in caught.value.what


def test_duplicates_overlap_and_unseen_classes(listed: Path) -> None:
    train = listed / "train.txt"
    train.write_text("clips/train 0.mp4 0\nclips/train 0.mp4 1\n")
    with (
        pytest.warns(DataWarning, match="1 files are listed more than once, 1 of them with different labels"),
        pytest.warns(DataWarning, match="1 of 3 classes have no training video: 2"),
    ):
        of_lists(listed, num_classes=3)
    train.write_text("clips/train 0.mp4 0\nclips/val 1.mp4 1\n")
    with pytest.raises(DataError, match=r"1 files are in the training list too: .*val 1\.mp4 \[data\.val_list\]"):
        of_lists(listed)
    train.write_text("clips/train 0.mp4 0\nclips/train 1.mp4 3\n")
    with pytest.raises(DataError, match="go up to 3, and 2 below have no sample"):
        of_lists(listed)


def test_missing_videos_of_all_splits_come_at_once(listed: Path) -> None:
    for name in ("train 0.mp4", "train 2.webm", "val 1.mp4"):
        (listed / "clips" / name).unlink()
    with pytest.raises(DataError) as caught:
        of_lists(listed)
    text = str(caught.value)
    assert text.startswith("3 videos are missing: 2 of train in ")
    assert all(name in text for name in ("train 0.mp4", "train 2.webm", "val 1.mp4", "1 of val in"))
    assert "\n" not in text


def test_many_missing_videos_are_counted(listed: Path) -> None:
    shutil.rmtree(listed / "clips")
    with pytest.raises(DataError, match=r"17 videos are missing: 8 of train .* and 3 more; 4 of val"):
        of_lists(listed)


def test_missing_training_videos_may_be_dropped_and_are_counted(listed: Path) -> None:
    (listed / "clips" / "train 3.avi").unlink()
    with pytest.raises(DataError, match=r"1 videos are missing.*set data\.missing to drop"):
        of_lists(listed)
    with pytest.warns(DataWarning, match=r"1 of 8 training videos are missing and left out: .*train 3\.avi"):
        data = of_lists(listed, missing="drop")
    assert data.n_expected("train") == 7
    assert data.record()["missing_training_videos"] == 1
    assert "clips/train 3.avi" not in dict(pairs(data, "train"))


def test_missing_videos_are_never_dropped_from_evaluation(listed: Path) -> None:
    (listed / "clips" / "test 3.avi").unlink()
    with pytest.raises(DataError, match=r"1 videos are missing: 1 of test .*a score says what it was measured on"):
        of_lists(listed, missing="drop")


def test_no_training_video_is_left(listed: Path) -> None:
    for path in (listed / "clips").glob("train*"):
        path.unlink()
    with pytest.raises(DataError, match="no video of train is there"):
        of_lists(listed, missing="drop", num_classes=2)


@pytest.mark.parametrize("folders", ["flat", "spaces", "underscores"])
def test_kinetics_by_lists(videos: Path, tmp_path: Path, folders: str) -> None:
    root = layouts.kinetics(videos, tmp_path, folders)
    lists = {f"{split}_csv": f"annotations/{split}.csv" for split in ("train", "val", "test")}
    data = KineticsData(str(root), test="test", **lists)  # type: ignore[arg-type]
    assert data.classes == ("riding a bike", "yoga")
    assert [label for _, label in pairs(data, "train")] == [0, 1, 1]
    assert [label for _, label in pairs(data, "val")] == [1, 0]
    assert pairs(data, "train")[0][0].endswith("-0abcdefghi_000003_000013.mp4")
    assert pairs(data, "test")[0][0].endswith("ttttttttttt_000001_000011.mp4")
    assert len(data.predict_names) == 1


def test_kinetics_test_list_without_labels_is_for_prediction(videos: Path, tmp_path: Path) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    (root / "annotations" / "test.csv").write_text("youtube_id,time_start,time_end,split\nttttttttttt,1.0,11.0,test\n")
    lists = {f"{split}_csv": f"annotations/{split}.csv" for split in ("train", "val", "test")}
    data = KineticsData(str(root), test="test", **lists)  # type: ignore[arg-type]
    assert data.source("test") is None
    assert data.predict_names == ("ttttttttttt_000001_000011.mp4",)


@pytest.mark.parametrize("folders", ["spaces", "underscores"])
def test_kinetics_by_class_folders(videos: Path, tmp_path: Path, folders: str) -> None:
    root = layouts.kinetics(videos, tmp_path, folders)
    shutil.rmtree(root / "annotations")
    data = KineticsData(str(root))
    assert data.classes == ("riding a bike" if folders == "spaces" else "riding_a_bike", "yoga")
    assert [label for _, label in pairs(data, "train")] == [0, 1, 1]
    assert data.source("test") is None
    (root / "val" / "yoga").rename(root / "val" / "joga")
    with pytest.raises(DataError, match=r"the splits have different classes.*joga"):
        KineticsData(str(root))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("yoga,../../etc,0,10,train", "is no id of a video"),
        ("yoga,abc,10,0,train", "10 to 0 is no span of time"),
        ("yoga,abc,x,10,train", "train.csv:5: could not convert"),
        ("yoga,abc", "train.csv:5"),
        ("yoga,gone,0,10,train", "1 videos are missing: 1 of train .*gone_000000_000010"),
    ],
)
def test_bad_rows_of_kinetics(videos: Path, tmp_path: Path, row: str, message: str) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    with (root / "annotations" / "train.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=message):
        KineticsData(str(root), val=None, train_csv="annotations/train.csv")


def test_kinetics_lists_and_folders_belong_together(videos: Path, tmp_path: Path) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    with pytest.raises(DataError, match=r"val split has a folder and no list \[data\.val_csv\]"):
        KineticsData(str(root), train_csv="annotations/train.csv")
    with pytest.raises(DataError, match=r"val_csv is given without train_csv"):
        KineticsData(str(root), val_csv="annotations/val.csv")
    (root / "annotations" / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\ndancing,vvvvvvvvvvv,5,15,val\n"
    )
    with pytest.raises(DataError, match="1 classes are not in the training list: dancing"):
        KineticsData(str(root), train_csv="annotations/train.csv", val_csv="annotations/val.csv")
    (root / "annotations" / "train.csv").write_text("label,id\nyoga,x\n")
    with pytest.raises(DataError, match="no columns time_end, time_start, youtube_id"):
        KineticsData(str(root), val=None, train_csv="annotations/train.csv")


def test_one_name_two_files(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    layouts.put(videos, "long.mp4", root / "videos" / "3.mp4")
    with pytest.raises(DataError, match=r"3 is there more than once: 3\.mp4, 3\.webm"):
        SomethingSomethingV2Data(str(root))


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_something_something(videos: Path, tmp_path: Path, suffix: str) -> None:
    root = layouts.something(videos, tmp_path, suffix)
    data = SomethingSomethingV2Data(str(root), test_answers="test-answers.csv")
    assert data.classes == ("Moving something up", "Putting something onto something", "Tearing something")
    assert pairs(data, "train") == [(f"{n}{suffix}", n % 3) for n in (1, 2, 3, 4)]
    assert pairs(data, "val") == [(f"{n}{suffix}", n % 3) for n in (7, 8)]
    assert pairs(data, "test") == [(f"9{suffix}", 1), (f"10{suffix}", 0)]
    assert not data.augmentation.horizontal_flip
    assert SomethingSomethingV2Data(str(root), horizontal_flip=True).augmentation.horizontal_flip
    assert UCF101Data(str(layouts.ucf101(videos, tmp_path / "ucf"))).augmentation.horizontal_flip


def test_something_something_test_list_without_answers_is_for_prediction(videos: Path, tmp_path: Path) -> None:
    data = SomethingSomethingV2Data(str(layouts.something(videos, tmp_path)))
    assert data.source("test") is None
    assert data.predict_names == ("9.webm", "10.webm")


def test_moving_digits_are_read(tmp_path: Path) -> None:
    from lightning_petl.cli import run

    assert run(["data", "make", "moving-digits", str(tmp_path / "d"), "--train", "8", "--val", "8", "--test", "8"]) == 0
    data = SomethingSomethingV2Data(str(tmp_path / "d"))
    assert data.num_classes == 8
    assert sorted(label for _, label in pairs(data, "test")) == list(range(8))


def spoil(root: Path, file: str, content: object) -> None:
    (root / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.json", {"a": "0", "b": "2"}, r"numbers of 2 sentences are not 0 to 1 \[.*labels\.json"),
        ("labels.json", {"a": "zero"}, "a sentence's number is none"),
        ("labels.json", [], "maps no sentences"),
        ("train.json", {"id": 3}, "no list of videos"),
        ("train.json", [], "the list has no videos"),
        ("train.json", [{"id": "1", "template": "Eating [something]"}], "1: 'Eating something' is not in the labels"),
        ("train.json", [{"id": "1"}], "1 has no template"),
        ("train.json", [{"id": "../1", "template": layouts.SENTENCES[0]}], "entry 0 has no id"),
        ("train.json", [{"id": "77", "template": layouts.SENTENCES[0]}], "1 videos are missing: 1 of train .*: 77"),
        ("validation.json", [{"id": "1", "template": layouts.SENTENCES[1]}], "in the training list too"),
        ("test.json", [{"id": "9"}, {"id": "8", "template": layouts.SENTENCES[1]}], "some of the videos"),
    ],
)
def test_bad_files_of_something_something(
    videos: Path, tmp_path: Path, file: str, content: object, message: str
) -> None:
    root = layouts.something(videos, tmp_path)
    spoil(root, file, content)
    with pytest.raises(DataError, match=message):
        SomethingSomethingV2Data(str(root))


def test_something_something_files_that_do_not_read(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    (root / "test-answers.csv").write_text("9;Moving something up\n10\n")
    with pytest.raises(DataError, match="line 2 is not `id;sentence`"):
        SomethingSomethingV2Data(str(root), test_answers="test-answers.csv")
    (root / "train.json").write_text("[{")
    with pytest.raises(DataError, match=r"the file is no JSON: .*train\.json"):
        SomethingSomethingV2Data(str(root))
    (root / "train.json").unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file.*\[data\.train\]"):
        SomethingSomethingV2Data(str(root))


@pytest.mark.parametrize(("split", "train", "test"), [(1, "01", "3"), (2, "12", "0"), (3, "23", "1")])
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_hmdb51(videos: Path, tmp_path: Path, split: int, train: str, test: str, suffix: str) -> None:
    data = HMDB51Data(str(layouts.hmdb51(videos, tmp_path, suffix)), split=split)
    assert data.classes == ("brush_hair", "wave")
    for name, numbers in (("train", train), ("test", test)):
        found = pairs(data, name)
        assert [label for _, label in found] == [0] * len(numbers) + [1] * len(numbers)
        assert [path.partition("#")[2][0] for path, _ in found] == list(numbers * 2)
        assert all(path.endswith(suffix) for path, _ in found)
    assert data.source("val") is None
    both = HMDB51Data(str(tmp_path), split=split, val_on_test=True)
    assert pairs(both, "val") == pairs(both, "test")


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101(videos: Path, tmp_path: Path, split: int) -> None:
    data = UCF101Data(str(layouts.ucf101(videos, tmp_path)), split=split)
    assert data.classes == ("ApplyEyeMakeup", "Archery", "YoYo")
    assert len(pairs(data, "train")) == 6
    name = data.classes[2]
    assert pairs(data, "test")[2] == (f"{name}/v_{name}_g{split:02d}_c01.avi", 2)


def wrong_number(root: Path) -> None:
    file = root / "ucfTrainTestlist/trainlist01.txt"
    file.write_text(file.read_text().replace("_g02_c01.avi 2", "_g02_c01.avi 3"))


def unknown_class(root: Path) -> None:
    (root / "ucfTrainTestlist/testlist01.txt").write_text("Sleeping/v_Sleeping_g01_c01.avi\n../x/y.avi\n")


def gap(root: Path) -> None:
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 ApplyEyeMakeup\n3 YoYo\n")


def no_list(root: Path) -> None:
    (root / "ucfTrainTestlist/testlist01.txt").unlink()


def gone(root: Path) -> None:
    (root / "UCF-101/YoYo/v_YoYo_g01_c01.avi").unlink()


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (wrong_number, "trainlist01.txt:3: Archery is class 2, not 3"),
        (unknown_class, "2 bad lines: testlist01.txt:1: Sleeping is no class; testlist01.txt:2: .* is not"),
        (gap, "numbers of 2 classes do not run from 1"),
        (no_list, "the list cannot be read: No such file"),
        (gone, "1 videos are missing: 1 of test .*v_YoYo_g01_c01"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_files_of_ucf101(videos: Path, tmp_path: Path, spoiled: Callable[[Path], None], message: str) -> None:
    root = layouts.ucf101(videos, tmp_path)
    spoiled(root)
    with pytest.raises(DataError, match=message):
        UCF101Data(str(root))


def test_bad_files_of_hmdb51(videos: Path, tmp_path: Path) -> None:
    root = layouts.hmdb51(videos, tmp_path)
    file = root / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    text = file.read_text()
    file.write_text(text + "a/b.avi 1\nx.avi 5\n")
    with pytest.raises(DataError, match=r"2 bad lines: wave_test_split1\.txt:5: 'a/b.avi 1' is not"):
        HMDB51Data(str(root))
    file.write_text(text.replace(" 2 ", " 0 "))
    with pytest.raises(DataError, match="no training or no test videos"):
        HMDB51Data(str(root))
    with pytest.raises(DataError, match=r"no lists of split 1 \[data\.splits\]"):
        HMDB51Data(str(root), splits="videos")
    for build in (HMDB51Data, UCF101Data):
        with pytest.raises(ConfigError, match=r"split is 4 \[data\.split\]"):
            build(str(root), split=4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"frames": 0}, "frames"),
        ({"sampling": "random"}, "sampling"),
        ({"sampling": "segments", "rate": 4}, "rate"),
        ({"sampling": "segments", "fps": 10.0}, "fps"),
        ({"by_time": True}, "by_time"),
        ({"rate": 0}, "rate"),
        ({"fps": -1.0}, "fps"),
        ({"short": "pad"}, "short"),
        ({"temporal_views": 0}, "temporal_views"),
        ({"spatial_views": 2}, "spatial_views"),
        ({"image_size": 0}, "image_size"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"rand_augment": "rand-z9"}, "rand_augment"),
        ({"rand_augment": "augmix"}, "rand_augment"),
        ({"reader": "ffmpeg"}, "reader"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"missing": "skip"}, "missing"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"mean": (0.5, 0.5, 0.5)}, "std"),
    ],
)
def test_options_are_checked(listed: Path, options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[data\.{field}\]"):
        of_lists(listed, **options)


def test_input_settings(listed: Path) -> None:
    data = of_lists(listed, normalization="imagenet", image_size=32, short_side=40)
    assert data.input_config.image_size == (32, 32)
    assert data.input_config.crop_pct == 0.8
    assert data.input_config.eval_transform == "crop"
    data.setup("fit")
    small = of_lists(listed, normalization="imagenet", image_size=32, short_side=24)
    with pytest.raises(ConfigError, match=r"short_side is 24, less than the 32 pixels .*data\.short_side"):
        small.setup("fit")
    with pytest.raises(ConfigError, match=r"left to the backbone.*data\.image_size|data\.normalization"):
        of_lists(listed).setup("fit")


def test_absent_splits_name_their_options(listed: Path) -> None:
    data = VideoListData(str(listed), "train.txt", image_size=32, normalization="imagenet")
    for stage, option in (("validate", "data.val_list"), ("test", "data.test_list"), ("predict", "data.predict")):
        with pytest.raises(DataError, match=option):
            data.setup(stage)


def test_videos_to_predict_need_no_labels(listed: Path) -> None:
    data = VideoListData(str(listed), "train.txt", predict="clips", image_size=32, normalization="imagenet")
    assert len(data.predict_names) == 17
    data.setup("predict")


def test_videos_alone_can_be_predicted_where_the_classes_are_given(listed: Path) -> None:
    options = {"image_size": 32, "normalization": "imagenet"}
    data = VideoListData(str(listed), None, class_names=("up", "down"), predict="clips", **options)
    assert data.classes == ("up", "down")
    assert len(data.predict_names) == 17
    data.setup("predict")
    with pytest.raises(DataError, match=r"no train split \[data.train_list\]"):
        data.setup("fit")
    with pytest.raises(ConfigError, match=r"no training list to tell the classes \[data.class_names\]"):
        VideoListData(str(listed), None, predict="clips", **options)


def test_one_video_to_predict(listed: Path) -> None:
    options = {"image_size": 32, "normalization": "imagenet", "frames": 2, "rate": 1}
    data = of_lists(listed, predict="clips/test 2.webm", **options)
    assert data.predict_names == ("test 2.webm",)
    [(clips, indices)] = data.predict_dataloader()
    assert clips.shape == (1, 1, 2, 3, 32, 32)
    assert indices.tolist() == [0]
    for name in ("train.txt", "clips/picture.png"):
        (listed / name).touch()
        with pytest.raises(DataError, match=r"is neither a folder nor a video by its name \[data.predict\] - .*\.mp4"):
            of_lists(listed, predict=name)
    with pytest.raises(DataError, match=r"nowhere does not exist \[data.predict\]"):
        of_lists(listed, predict="nowhere")
