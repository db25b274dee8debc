"""Lists that read well and are not what they are taken for: each is refused, or used as what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import layouts
import pytest

from lightning_petl.data import DataWarning, HMDB51Data, KineticsData, SomethingSomethingV2Data, VideoListData
from lightning_petl.errors import DataError


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_class_folder_without_a_list_is_no_class_less(videos: Path, tmp_path: Path, split: int) -> None:
    root = layouts.hmdb51(videos, tmp_path)
    folder = root / "testTrainMulti_7030_splits"
    (folder / f"brush_hair_test_split{split}.txt").unlink()
    message = rf"{root}/videos/brush_hair has no list .*{folder}/brush_hair_test_split{split}\.txt"
    with pytest.raises(DataError, match=message):
        HMDB51Data(str(root), split=split)
    # Folders without videos, and hidden ones, are no classes.
    shutil.rmtree(root / "videos/brush_hair")
    for name in ("notes", ".cache"):
        (root / "videos" / name).mkdir()
        (root / "videos" / name / "readme.txt").touch()
    layouts.put(videos, "plain.avi", root / "videos/.cache/x.avi")
    assert HMDB51Data(str(root), split=split).classes == ("wave",)


@pytest.mark.parametrize("missing", ["raise", "drop"])
def test_a_list_without_a_class_folder(videos: Path, tmp_path: Path, missing: str) -> None:
    root = layouts.hmdb51(videos, tmp_path)
    shutil.rmtree(root / "videos/wave")
    with pytest.raises(DataError, match=r"videos are missing: .* of test in .*wave/Tom's_wave"):
        HMDB51Data(str(root), missing=missing)  # type: ignore[arg-type]


CSV = {f"{split}_csv": f"annotations/{split}.csv" for split in ("train", "val", "test")}


def relabelled(root: Path, split: str, word: str) -> None:
    """Another word in the column of the split."""
    file = root / "annotations" / f"{split}.csv"
    file.write_text("".join(f"{line.rpartition(',')[0]},{word}\n" for line in file.read_text().splitlines()))
    file.write_text(file.read_text().replace(f"time_end,{word}", "time_end,split"))


@pytest.mark.parametrize(
    ("split", "word"), [("val", "train"), ("val", "test"), ("test", "Train"), ("train", "validate"), ("train", "tran")]
)
def test_kinetics_lists_of_another_split(videos: Path, tmp_path: Path, split: str, word: str) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    relabelled(root, split, word)
    with pytest.raises(DataError, match=rf"{split}\.csv:2: its split is '{word}', not {split}.*/{split}\.csv\]"):
        KineticsData(str(root), test="test", **CSV)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("split", "word"),
    [
        ("train", "train"),
        ("train", ""),
        *(("val", word) for word in ("val", "validate", "Validation", "")),
        # Scores of Kinetics are often of its validation split.
        *(("test", word) for word in ("test", "holdout_test", "validate", "")),
    ],
)
def test_kinetics_words_for_the_split(videos: Path, tmp_path: Path, split: str, word: str) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    relabelled(root, split, word)
    data = KineticsData(str(root), test="test", **CSV)  # type: ignore[arg-type]
    assert [data.n_expected(name) for name in ("train", "val", "test")] == [3, 2, 1]


@pytest.mark.parametrize("number", ["1.7", "true", "null", '"1.0"', '"-1"', "[1]", "NaN"])
def test_numbers_of_sentences_are_whole(videos: Path, tmp_path: Path, number: str) -> None:
    root = layouts.something(videos, tmp_path)
    labels = (root / "labels.json").read_text()
    assert labels.count('"1"') == 1
    (root / "labels.json").write_text(labels.replace('"1"', number))
    with pytest.raises(DataError, match=r"a sentence's number is none: .* of 'Putting .*labels\.json"):
        SomethingSomethingV2Data(str(root))


def test_numbers_of_sentences_may_be_numbers_or_text(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    labels = (root / "labels.json").read_text()
    (root / "labels.json").write_text(labels.replace('"1"', "1"))
    assert SomethingSomethingV2Data(str(root)).num_classes == 3


def test_a_sentence_with_two_numbers(videos: Path, tmp_path: Path) -> None:
    """The last one would win in JSON."""
    root = layouts.something(videos, tmp_path)
    labels = json.loads((root / "labels.json").read_text())
    pairs = ", ".join(f"{json.dumps(sentence)}: {number}" for sentence, number in labels.items())
    (root / "labels.json").write_text("{" + f'"Tearing something": 7, {pairs}' + "}")
    with pytest.raises(DataError, match=r"'Tearing something' is there twice in one object \[.*labels\.json\]"):
        SomethingSomethingV2Data(str(root))


def test_an_entry_with_two_templates(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    text = (root / "train.json").read_text()
    (root / "train.json").write_text(text.replace('"template"', '"template": "Tearing [something]", "template"', 1))
    with pytest.raises(DataError, match=r"'template' is there twice in one object \[.*train\.json\]"):
        SomethingSomethingV2Data(str(root))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            "9;Tearing something\n10;Moving something up\n9;Moving something up\n",
            r"line 3 says 'Moving something up' of 9, and line 1 'Tearing something' \[.*test-answers\.csv\]",
        ),
        ("", "2 bad entries: 9 has no template; 10 has no template"),
        ("9;Tearing something\n10;\n", "1 bad entries: 10 has no template"),
    ],
)
def test_answers_that_are_none(videos: Path, tmp_path: Path, answers: str, message: str) -> None:
    root = layouts.something(videos, tmp_path)
    (root / "test-answers.csv").write_text(answers)
    with pytest.raises(DataError, match=message):
        SomethingSomethingV2Data(str(root), test_answers="test-answers.csv")


def test_an_answer_that_comes_twice(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    with (root / "test-answers.csv").open("a") as file:
        file.write('9;"Putting something onto something"\n')
    assert SomethingSomethingV2Data(str(root), test_answers="test-answers.csv").n_expected("test") == 2


def test_an_answer_against_the_template(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    entries = [{"id": "9", "template": layouts.SENTENCES[1]}, {"id": "10", "template": layouts.SENTENCES[2]}]
    (root / "test.json").write_text(json.dumps(entries))
    message = "1 bad entries: 10: its template is 'Tearing something', and the answers say 'Moving something up'"
    with pytest.raises(DataError, match=message):
        SomethingSomethingV2Data(str(root), test_answers="test-answers.csv")


def of_three_classes(videos: Path, root: Path, gone: str, **options: object) -> VideoListData:
    """Two training videos a class, and one for validation; those of the class ``gone`` are missing in training."""
    for split, count in (("train", 6), ("val", 3)):
        lines = []
        for index in range(count):
            label = str(index % 3)
            lines.append(f"{split}{index}.mp4 {label}\n")
            if split == "val" or label not in gone:
                layouts.put(videos, "long.mp4", root / f"{split}{index}.mp4")
        (root / f"{split}.txt").write_text("".join(lines))
    return VideoListData(str(root), "train.txt", "val.txt", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gone", ["2", "1", "12"])
def test_classes_are_those_of_the_list_with_its_missing_videos(videos: Path, tmp_path: Path, gone: str) -> None:
    with (
        pytest.warns(DataWarning, match=rf"{2 * len(gone)} of 6 training videos are missing"),
        pytest.warns(DataWarning, match=rf"{len(gone)} of 3 classes have no training video: {', '.join(gone)}"),
    ):
        data = of_three_classes(videos, tmp_path, gone, missing="drop")
    assert data.classes == ("0", "1", "2")
    assert data.n_expected("train") == 6 - 2 * len(gone)
    assert data.n_expected("val") == 3


def test_a_list_without_any_of_its_videos(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no video of train is there"):
        of_three_classes(videos, tmp_path, "012", missing="drop")
    with pytest.raises(DataError, match="6 videos are missing: 6 of train"):
        of_three_classes(videos, tmp_path, "012")


EASY = {"image_size": 32, "normalization": "imagenet"}


def test_a_test_list_without_answers_says_what_it_lacks(videos: Path, tmp_path: Path) -> None:
    data = SomethingSomethingV2Data(str(layouts.something(videos, tmp_path)), **EASY)  # type: ignore[arg-type]
    for use in (lambda: data.setup("test"), lambda: data.n_expected("test"), data.test_dataloader):
        with pytest.raises(
            DataError, match=r"test list has no labels \[data\.test\] - set data\.test_answers .*, or use predict"
        ):
            use()
    data.setup("predict")
    none = SomethingSomethingV2Data(str(tmp_path), test=None, **EASY)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"the data set has no test split \[data\.test\]"):
        none.setup("test")


def unlabelled(root: Path, split: str, rows: slice) -> None:
    """A list with a second row, and without the labels of some."""
    file = root / "annotations" / f"{split}.csv"
    head, *lines = file.read_text().splitlines()
    lines = [lines[0], lines[0]]
    lines[rows] = ["," + line.partition(",")[2] for line in lines[rows]]
    file.write_text("\n".join([head, *lines]) + "\n")


def test_a_kinetics_test_list_without_labels_says_what_it_lacks(videos: Path, tmp_path: Path) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    unlabelled(root, "test", slice(2))
    with pytest.warns(DataWarning, match="listed more than once"):
        data = KineticsData(str(root), test="test", **CSV, **EASY)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"the test list has no labels \[data\.test_csv\] - give .* column label, or use predict"
    ):
        data.setup("test")
    data.setup("predict")


@pytest.mark.parametrize(("rows", "line"), [(slice(1), 2), (slice(1, 2), 3)])
@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_a_kinetics_list_that_is_labelled_in_part(
    videos: Path, tmp_path: Path, split: str, rows: slice, line: int
) -> None:
    root = layouts.kinetics(videos, tmp_path, "flat")
    unlabelled(root, split, rows)
    with pytest.raises(DataError, match=rf"line {line} of the {split} list has no label.*/{split}\.csv\]"):
        KineticsData(str(root), test="test", **CSV)  # type: ignore[arg-type]


def test_a_list_of_something_something_that_is_labelled_in_part(videos: Path, tmp_path: Path) -> None:
    root = layouts.something(videos, tmp_path)
    entries = [{"id": "9", "template": layouts.SENTENCES[1]}, {"id": "10"}]
    (root / "test.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"some of the videos have a template and some have none, 10 first"):
        SomethingSomethingV2Data(str(root))
