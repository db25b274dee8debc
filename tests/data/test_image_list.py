"""List files: every fault by file and line, all at once, and the layout of VTAB-1k."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import noise, photo

from lightning_petl.data import DataWarning, ImageListData, InputConfig
from lightning_petl.errors import ConfigError, DataError


def read(root: Path, text: str | bytes, **options: object) -> ImageListData:
    (root / "train.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return ImageListData(str(root), "train.txt", **options)  # type: ignore[arg-type]


def pairs(data: ImageListData, split: str = "train") -> list[tuple[str, int]]:
    source = data.source(split)
    assert source is not None
    return [(source.name(i), label) for i, label in enumerate(source.labels)]


@pytest.mark.parametrize(
    "text",
    [
        "a.png 0\nb.png 1\n",
        "a.png 0\r\nb.png 1\r\n",
        "\ufeffa.png 0\nb.png 1",
        "a.png,0\nb.png,1\n",
        "a.png, 0\n\n  b.png\t1  \n",
        "./a.png 00\n\n\nb.png 1\n",
    ],
    ids=["plain", "crlf", "bom", "comma", "blanks", "dot"],
)
def test_spellings_of_one_list(listed: Path, text: str) -> None:
    assert pairs(read(listed, text)) == [("a.png", 0), ("b.png", 1)]


@pytest.mark.parametrize("name", ["my cat.png", "a,b.png", "a, b 7.png", "naïve é.png", "x\u2028y.png"])
@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_odd_file_names(listed: Path, name: str, separator: str) -> None:
    photo().save(listed / name)
    assert pairs(read(listed, f"a.png 0\n{name}{separator}1\n")) == [("a.png", 0), (name, 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.png", "'b.png' is not `path label`"),
        ("b.png cat", "the label 'cat' is not a whole number"),
        ("my cat.png", "the label 'cat.png' is not a whole number"),
        ("b.png 1.0", "'1.0' is not a whole number"),
        ("b.png 1_0", "'1_0' is not a whole number"),
        ("b.png ٣", "is not a whole number"),
        ("b.png -1", "the label -1 is not in 0..1"),
        ("b.png 2", "the label 2 is not in 0..1"),
        ("b.png 1 1", "b.png 1 does not exist"),
        ("gone.png 1", "gone.png does not exist"),
        ("no/such/folder.png 1", "no/such/folder.png does not exist"),
        (". 1", "leads out of"),
        ("../train.txt 1", "leads out of"),
        ("/etc/passwd 1", "/etc/passwd leads out of"),
        ("sub/../../x.png 1", "leads out of"),
        ("b.png, ", "is not `path label`"),
        (",1", "is not `path label`"),
        ("b\0.png 1", "zero byte"),
    ],
)
def test_bad_lines(listed: Path, line: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(listed, f"a.png 0\n{line}\n", num_classes=2)
    assert "train.txt:2: " in caught.value.what
    assert message in caught.value.what
    assert caught.value.where == str(listed / "train.txt")


def test_all_bad_lines_at_once_and_twenty_shown(listed: Path) -> None:
    lines = ["a.png 0"] + [f"gone{i}.png 0" for i in range(23)] + ["b.png x"]
    with pytest.raises(DataError) as caught:
        read(listed, "\n".join(lines))
    text = str(caught.value)
    assert text.startswith("24 bad lines: train.txt:2: ")
    assert "train.txt:21:" in text
    assert "train.txt:22:" not in text
    assert "and 4 more" in text
    assert "\n" not in text


def test_links_out_of_the_root(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    photo().save(outside / "x.png")
    (listed / "link.png").symlink_to(outside / "x.png")
    (listed / "folder").symlink_to(outside, target_is_directory=True)
    (listed / "inside.png").symlink_to(listed / "e.png")
    (listed / "dead.png").symlink_to(listed / "gone.png")
    text = f"a.png 0\nlink.png 0\nfolder/x.png 0\n{outside}/x.png 0\ninside.png 0\ndead.png 0\n"
    with pytest.raises(DataError) as caught:
        read(listed, text)
    faults = caught.value.what
    assert all(f"train.txt:{line}: " in faults for line in (2, 3, 4, 6))
    assert not any(f"train.txt:{line}: " in faults for line in (1, 5))
    assert faults.count("leads out of") == 3
    data = read(listed, text.replace("dead.png 0\n", ""), allow_outside_root=True)
    assert data.n_expected("train") == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no samples"),
        (b"\n \n", "no samples"),
        ("a.png 0\nb.png 1\n".encode("utf-16"), "not UTF-8"),
        (b"a.png 0\nb\xff.png 1\n", "not UTF-8 text .*train.txt:2"),
    ],
)
def test_unreadable_lists(listed: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(listed, content)


def test_missing_root_and_list(listed: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist \[data.root\]"):
        ImageListData(str(listed / "gone"), "train.txt")
    with pytest.raises(DataError, match=r"val.txt cannot be read: No such file or directory \[data.val_list\]"):
        ImageListData(str(listed), "train.txt", "val.txt")


def test_duplicates_are_counted(listed: Path) -> None:
    with pytest.warns(DataWarning, match="2 files are listed more than once, 1 of them with different labels"):
        data = read(listed, "a.png 0\nb.png 1\na.png 0\n./b.png 0\nc.png 1\n")
    assert data.n_expected("train") == 5


@pytest.mark.parametrize("split", ["val_list", "test_list"])
@pytest.mark.parametrize("shared", ["b.png", "./b.png", "alias.png"])
def test_overlap_with_training(listed: Path, split: str, shared: str) -> None:
    (listed / "alias.png").symlink_to(listed / "b.png")
    (listed / "other.txt").write_text(f"e.png 0\n{shared} 1\n")
    with pytest.raises(DataError, match=rf"1 files are in the training list too: .*/b.png \[data.{split}\]"):
        ImageListData(str(listed), "train.txt", **{split: "other.txt"})


def test_val_and_test_may_be_one_list(listed: Path) -> None:
    (listed / "test.txt").write_text("e.png 0\nf.png 1\n")
    data = ImageListData(str(listed), "train.txt", "test.txt", "test.txt")
    assert pairs(data, "val") == pairs(data, "test") == [("e.png", 0), ("f.png", 1)]


def test_number_of_classes(listed: Path) -> None:
    (listed / "val.txt").write_text("e.png 2\n")
    assert read(listed, "a.png 1\nb.png 0\n").classes == ("0", "1")
    assert read(listed, "a.png 1\nb.png 0\n", class_names=("no", "yes")).classes == ("no", "yes")
    with pytest.warns(DataWarning, match="1 of 3 classes have no training sample: 2"):
        assert read(listed, "a.png 1\nb.png 0\n", num_classes=3, val_list="val.txt").num_classes == 3
    with pytest.raises(DataError, match=r"val.txt:1: the label 2 is not in 0..1"):
        read(listed, "a.png 1\nb.png 0\n", val_list="val.txt")
    with pytest.raises(DataError, match="go up to 4, and 3 below have no sample: 1, 2, 3"):
        read(listed, "a.png 4\nb.png 0\n")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "num_classes"),
        ({"class_names": ()}, "class_names"),
        ({"class_names": ("a", "a")}, "class_names"),
    ],
)
def test_class_options(listed: Path, options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{field}"):
        ImageListData(str(listed), "train.txt", **options)  # type: ignore[arg-type]


def test_absent_split_names_its_option(listed: Path) -> None:
    data = ImageListData(str(listed), "train.txt", image_size=8, normalization="imagenet")
    with pytest.raises(DataError, match=r"\[data.test_list\]"):
        data.setup("test")
    with pytest.raises(DataError, match=r"\[data.predict\]"):
        data.setup("predict")


def test_prediction_of_one_image_but_of_no_list(listed: Path) -> None:
    options = {"image_size": 8, "normalization": "imagenet"}
    data = ImageListData(str(listed), "train.txt", predict="a.png", **options)  # type: ignore[arg-type]
    assert data.predict_names == ("a.png",)
    with pytest.raises(DataError, match=r"train.txt is neither .*\[data.predict\] - .*data.test_list"):
        ImageListData(str(listed), "train.txt", predict="train.txt", **options)  # type: ignore[arg-type]


def test_images_alone_can_be_predicted_where_the_classes_are_given(listed: Path) -> None:
    options = {"image_size": 8, "normalization": "imagenet"}
    data = ImageListData(str(listed), None, num_classes=2, predict="a.png", **options)  # type: ignore[arg-type]
    assert data.classes == ("0", "1")
    data.setup("predict")
    assert len(list(data.predict_dataloader())) == 1
    with pytest.raises(DataError, match=r"no train split \[data.train_list\]"):
        data.setup("fit")
    with pytest.raises(ConfigError, match=r"no training list to tell the classes \[data.class_names\]"):
        ImageListData(str(listed), None, predict="a.png", **options)  # type: ignore[arg-type]


def test_a_test_list_alone_is_scored_where_the_classes_are_given(listed: Path) -> None:
    (listed / "test.txt").write_text("a.png 1\nb.png 0\n")
    data = ImageListData(str(listed), None, test_list="test.txt", class_names=("cat", "dog"))
    assert data.n_expected("test") == 2
    (listed / "test.txt").write_text("a.png 2\n")
    with pytest.raises(DataError, match=r"the label 2 is not in 0..1"):
        ImageListData(str(listed), None, test_list="test.txt", class_names=("cat", "dog"))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_names_file_index_and_line(listed: Path, workers: int) -> None:
    (listed / "c.png").write_bytes((listed / "c.png").read_bytes()[:200])
    (listed / "train.txt").write_text("\na.png 0\nb.png 1\nc.png 0\nd.png 1\n")
    data = ImageListData(
        str(listed), "train.txt", batch_size=1, num_workers=workers, image_size=8, normalization="imagenet"
    )
    read_batches = 0
    with pytest.raises(DataError) as caught:  # noqa: PT012 - the batches before the bad one are counted
        for _ in data.train_dataloader():
            read_batches += 1
    assert type(caught.value) is DataError
    assert caught.value.where == f"{listed}/c.png, sample 2 of train, {listed}/train.txt:4"
    assert "\n" not in str(caught.value)
    assert read_batches == [index for _, index in data.train_dataloader().sampler].index(2)  # none was put in its place


def test_vtab_layout(tmp_path: Path, config: InputConfig) -> None:
    root = tmp_path / "cifar"
    counts = {"train800": 8, "val200": 2, "test": 3}
    lines: dict[str, list[str]] = {}
    for split, count in counts.items():
        (root / "images" / split).mkdir(parents=True)
        for i in range(count):
            photo(i).save(root / f"images/{split}/{i:06d}.jpg")
        lines[split] = [f"images/{split}/{i:06d}.jpg {i % 4}" for i in range(count)]
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for split, text in lines.items():
        (root / f"{split}.txt").write_text("\n".join(text) + "\n")
    tune = ImageListData(str(root), "train800.txt", "val200.txt", num_classes=4)
    assert [tune.n_expected(split) for split in ("train", "val")] == [8, 2]
    final = ImageListData(
        str(root), "train800val200.txt", test_list="test.txt", num_classes=4, batch_size=4, drop_last=True
    )
    final.input_config = config
    final.setup("fit")
    assert [labels.tolist() for _, labels in final.test_dataloader()] == [[0, 1, 2]]
    assert [images.shape for images, _ in final.train_dataloader()] == [(4, 3, 8, 8)] * 2
    assert final.predict_names[2] == "images/test/000002.jpg"
    with pytest.raises(DataError, match="2 files are in the training list too"):
        ImageListData(str(root), "train800val200.txt", "val200.txt", num_classes=4)


def test_images_are_those_of_the_list(listed: Path) -> None:
    source = read(listed, "d.png 0\nb.png 1\n").source("train")
    assert source is not None
    for index, seed in ((0, 3), (1, 1)):
        assert (noise(seed) == source.image(index)).all()
