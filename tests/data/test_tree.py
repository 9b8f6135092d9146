"""Splits, wrappers and class folders as people have them: read as meant, or refused."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from potstill.data import load, load_pair
from potstill.data.splits import find_split, split_roles, splits_to_test
from potstill.run import InputError

XRAY = ["NORMAL", "PNEUMONIA"]


@pytest.fixture
def build(tmp_path):
    """Makes pictures from lines such as ``train/{cat,dog} 3``: so many in each folder."""

    def make(*lines):
        root = tmp_path / "set"
        for value, line in enumerate(lines):
            pattern, count = re.fullmatch(r"(.*?)(?: (\d+))?", line).groups()
            for shade, folder in enumerate(expand(pattern)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                for number in range(int(count or 3)):
                    pixel = (value * 40 + number, shade * 30, 0)
                    picture = Image.new("RGB", (4, 4), pixel)
                    picture.putpixel((1, 2), (200, 200, 200))  # one colour alone is worth a word
                    picture.save(root / folder / f"{number}.png")
        return root

    return make


def expand(pattern):
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inner, _, tail = rest.partition("}")
    return [found for word in inner.split(",") for found in expand(head + word + tail)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["train/{a,b}", "test/{a,b} 2", "unlabeled 9"], "ignored beside them: unlabeled"),
        (["train/{a,b}", "test/{a,b} 2", "annotations 0"], "ignored beside them: annotations"),
        (["train/{a,b}", "test/{a,b} 2", "set/train/{a,b}"], "ignored beside them: set"),
        (["Train/{a,b}", "Test/{a,b} 2", "Meta 2"], "ignored beside them: Meta"),
        (["train/{a,b}", "val/{a,b} 2", "x{1,2,3,4,5,6,7} 1"], "x4, x5 and 2 more"),
        (["training_set/{a,b}", "test_set/{a,b} 2", "single_prediction 2"], "single_prediction"),
        (["TrainingData/{a,b}", "ValidationData/{a,b} 2"], None),
        (["trainset/{a,b}", "testset/{a,b} 2"], None),
        (["train2/{a,b}", "val_split/{a,b} 2"], None),
        (["train2017/{a,b}", "val2017/{a,b} 2"], None),
        (["Training/{a,b}", "Testing/{a,b} 2"], None),
        (["train_images/{a,b}", "test_images/{a,b} 2"], None),
        (
            ["seg_train/seg_train/{a,b}", "seg_test/seg_test/{a,b} 2", "seg_pred/seg_pred"],
            "seg_pred",
        ),
        (["asl_train/asl_train/{a,b}", "asl_test/{a,b} 2"], None),
        (["1_train/{a,b}", "2_test/{a,b} 2"], None),
        (["train/images/{a,b}", "test/images/{a,b} 2"], None),
        (["chest/train/{a,b}", "chest/test/{a,b} 2", "__MACOSX/chest/train/{a,b}"], None),
        (["x/y/train/{a,b}", "x/y/test/{a,b} 2", "x/notes 0"], "ignored beside them: notes"),
        (["train/{a,b}", "train_resized/{a,b} 9", "test/{a,b} 2"], "train_resized"),
        (["train/{train,car}", "test/{train,car} 2"], None),
        (["train/{a,b}", "Train (1)/{a,b} 9", "test/{a,b} 2"], "ignored beside them: Train (1)"),
    ],
)
def test_splits_are_never_classes(build, caplog, lines, words):
    root = build(*lines)
    train, test, sentence = load_pair(root)
    assert train.counts == (3, 3) and test.counts == (2, 2)
    assert train.classes in (("a", "b"), ("car", "train"))
    assert "split of set (4 images)" in sentence
    assert len(caplog.records) == (words is not None)
    if words:
        assert words in caplog.text


@pytest.mark.parametrize(
    "lines",
    [
        ["train/{a,b}", "test 4"],
        ["train/{a,b}", "test/images 4"],
        ["train/{a,b}", "test/unknown 4"],
        ["train/{a,b}", "test 0"],
        ["Train/{a,b}", "Test 4", "Meta 2"],
        ["train/{a,b}", "test1/test1 4"],
        ["train/{a,b}", "val/images 4", "test/images 4"],
        ["train/{a,b}", "{test,Test,TEST} 4"],
    ],
)
def test_a_test_split_without_class_folders_is_passed_over(build, caplog, lines):
    root = build(*[line.replace("{a,b}", "{a,b} 5") for line in lines])
    train, test, sentence = load_pair(root)
    assert train.counts == (4, 4) and test.counts == (1, 1)
    assert "it has no test split with labels" in sentence
    assert "has no class folders" in caplog.text and "it is passed over" in caplog.text
    with pytest.raises(InputError, match="images have no labels; use another split"):
        load(root, split="test")


def test_another_test_split_stands_in(build, caplog):
    root = build("train/{a,b}", "test 4", "valid/{a,b} 2", "test2/{a,b} 1")
    _, test, sentence = load_pair(root)
    assert test.counts == (1, 1) and "'test2' split" in sentence
    assert "set/test has no class folders" in caplog.text


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["{train,car,bus}"], "train beside bus, car, which may be .* number all folders"),
        (["train/{a,b}", "car"], r"train beside car, .* \(000_car, 001_train, ...\)"),
        (["{train,test,car}"], "test, train beside car"),
        (["{test,cat,dog}"], "test beside cat, dog, .* put the others into a folder named train"),
        (["{valid,invalid}"], "valid beside invalid"),
        (["train/{steam,diesel}", "car/{suv,van}"], "train beside car"),
        (["rps/{a,b}", "rps_test/{a,b}", "rps_val/{a,b}"], "rps_test, rps_val beside rps"),
        (["birds_train/{a,b}", "unlabeled"], "birds_train beside unlabeled"),
        (["{train,test}"], "train has no class folders"),
        (["images/{train,val}", "labels/{train,val} 0"], "train has no class folders"),
        (["images/{train,val}", "masks/{train,val}"], "give the folder that is meant"),
        (["{cat,dog}/{train,test}"], "holds splits in .*cat and other pictures .* dog; give"),
        (["fold{1,2}/{train,test}/{a,b}"], "holds splits in .*fold1 .* in fold2; give"),
        (["set/{train,test}/{a,b}", "cat"], "holds splits in .*set/set .* in cat; give"),
        (["{trainA,trainB,testA,testB}"], "several folders for training .trainA, trainB"),
        (["{train1,train2}/{a,b}", "test/{a,b}"], "several folders for training"),
        (["{train,Train}/{a,b}"], "several folders for training"),
        (["{train,training}/{a,b}"], "several folders for training"),
        (["train/{train,val}/{a,b}", "test/{a,b}"], "set/train holds splits itself .train"),
        (["train/{train,val,a}", "test/{a,b}"], "set/train holds splits itself .train, val"),
        (["test/{a,b}", "val/{a,b}"], "only has 'test', 'val'"),
        (["cat 0", "dog/{a,b}"], "class folder .*cat holds no images"),
        (["{cat,dog}/{train,test}", "extra"], "give the folder that is meant"),
    ],
)
def test_what_could_be_either_is_refused(build, lines, match):
    root = build(*lines)
    with pytest.raises(InputError, match=match) as caught:
        load_pair(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        (["{000_bus,001_car,002_train}"], ("bus", "car", "train")),
        (["{bullet_train,test_tube}"], ("bullet_train", "test_tube")),
        (["wrapper/{cat,dog}"], ("cat", "dog")),
        (["outer/inner/{cat,dog}"], ("cat", "dog")),
        (["animal/{cat,dog}", "vehicle/{train,car}"], ("animal", "vehicle")),
        (["{cat,dog}/images"], ("cat", "dog")),
        (["{fold1,fold2}"], ("fold1", "fold2")),
    ],
)
def test_class_folders(build, lines, classes):
    assert load(build(*lines)).classes == classes


def test_indices_and_names_of_ordinary_splits_stay(build):
    root = build("train/{000_wren,001_crow}", "Validation/{000_wren,001_crow} 1")
    train = load(root)
    assert train.classes == ("wren", "crow")
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert load(root, split="validation").counts == (1, 1)
    assert load(root, split="test").checksum == load(root, split="validation").checksum


def test_a_missing_test_class_has_a_way_out(build):
    root = build("train/{a,b,c} 10", "test/{a,b} 2", "test/c 0")
    assert load_pair(root)[1].counts == (2, 2, 0)
    assert load_pair(root / "train")[1].counts == (1, 1, 1)
    (root / "test" / "c").rmdir()
    assert load_pair(root)[1].counts == (2, 2, 0)
    (root / "test" / "b").rename(root / "test" / "d")
    with pytest.raises(InputError, match=r"have other classes than .*\(d\); .* only the train"):
        load_pair(root)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("TRAIN", "train"),
        ("trainSet", "train"),
        ("seg_train", "train"),
        ("data-train-01", "train"),
        ("train_val", "train"),
        ("valset", "validation"),
        ("test1", "test"),
        ("000_train", None),
        ("trains", None),
        ("trainé", None),
        ("été_train", None),
        ("train_test_split", None),
        ("valley", None),
        ("contest", None),
        ("unlabeled", None),
    ],
)
def test_names_of_splits(name, role):
    assert split_roles([name]).get(name) == role


def test_names_that_differ_in_the_role_only():
    names = ["asl_train", "asl_test", "bullet_train", "dog"]
    assert split_roles(names) == {"asl_train": "train", "asl_test": "test"}


def test_order_of_splits():
    names = ["train", "val", "valid", "test2", "testing", "Test"]
    assert splits_to_test(names) == ["Test", "testing", "test2", "valid", "val"]
    assert find_split("test", ["train", "dev"], "x") == "dev"
    assert find_split("train", ["x_train", "train_set"], "x") == "train_set"
    with pytest.raises(InputError, match="several splits for train"):
        find_split("train", ["train1", "train2"], "x")
