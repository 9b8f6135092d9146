from __future__ import annotations

import pytest

from potstill.data.layout import class_names, front_matter, split_files
from potstill.run import InputError


def split(*names, card=None):
    splits = split_files(list(names), card or {}, "set")
    return {split: find() for split, find in splits.items()}


def refused(match, *names, card=None):
    with pytest.raises(InputError, match=match) as caught:
        split(*names, card=card)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("Train.Parquet", "TEST.parquet"),
        ("cifar10_train.parquet", "cifar10_test.parquet"),
        ("train/0.parquet", "test/0.parquet"),
        ("animals.train/rows.arrow", "animals.test/rows.arrow"),
        ("plain/train/0000.parquet", "plain/test/0000.parquet"),
        ("training-set.parquet", "testing-set.parquet"),
    ],
)
def test_names_tell_the_split(train, test):
    assert split(train, test) == {"train": [train], "test": [test]}


def test_names_of_validation_and_of_any_split_that_was_pushed():
    assert list(split("train.parquet", "val.parquet")) == ["train", "validation"]
    names = [f"data/{name}-00000-of-00001.parquet" for name in ("train", "extra", "train_extra")]
    assert split(*names) == {
        "train": names[:1],
        "extra": names[1:2],
        "train_extra": names[2:],
    }


def test_words_within_words_are_no_splits():
    assert split("contest.parquet") == {"train": ["contest.parquet"]}
    assert split("strain_evaluator.parquet") == {"train": ["strain_evaluator.parquet"]}


def test_shards_come_by_number():
    shards = [f"train-{n:05d}-of-00003.parquet" for n in (0, 1, 2)]
    assert split(*reversed(shards)) == {"train": shards}
    hashed = [f"data/train-{n:05d}-of-00002-{h * 16}.parquet" for n, h in ((0, "f"), (1, "0"))]
    assert split(*hashed) == {"train": hashed}
    counted = [f"part.{n}.parquet" for n in (8, 9, 10, 11)]
    assert split(*sorted(counted)) == {"train": counted}
    spark = [f"part-{n:05d}-8a6b07cf-c000.snappy.parquet" for n in (0, 1)]
    assert split(*spark) == {"train": spark}


@pytest.mark.parametrize(
    "names",
    [
        ("test_a.parquet", "test_b.parquet"),
        ("test.parquet", "test_clean.parquet"),
        ("test/clean.parquet", "test/noisy.parquet"),
        ("cifar10_test.parquet", "cifar100_test.parquet"),
        ("test_2017.parquet", "test_2019.parquet"),
        ("test.parquet", "test.arrow"),
        ("test-00000-of-00001.parquet", "test-00000-of-00002.parquet"),
        ("one/test.parquet", "two/test.parquet"),
    ],
)
def test_two_test_sets_are_never_pooled(names):
    refused("files of the 'test' split that are no shards of one another", "train.parquet", *names)


def test_files_without_a_split():
    refused("files of the 'train' split that are no shards", "cats.parquet", "dogs.parquet")
    refused("could be test or train", "train/test.parquet")


def test_files_that_tell_no_split_beside_some_that_do(caplog):
    assert split("train.parquet", "metadata.parquet") == {"train": ["train.parquet"]}
    assert "metadata.parquet" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet",),
        ("train-00001-of-00003.parquet", "train-00002-of-00003.parquet"),
    ],
)
def test_shards_that_are_missing(names):
    refused(r"has \d of the \d files of its 'train' split", *names)


def test_the_card_says_which_files():
    files = ("data/a.parquet", "data/b.parquet", "held/out.parquet", "other/c.parquet")
    one = {"split": "train", "path": "data/*.parquet"}
    two = {"split": "test", "path": ["held/out.parquet"]}
    card = {"configs": [{"config_name": "default", "data_files": [one, two]}]}
    assert split(*files, card=card) == {"train": list(files[:2]), "test": ["held/out.parquet"]}
    for listed in ("**/c.parquet", ["other/c.parquet"], {"train": "other/*"}):
        card = {"configs": [{"config_name": "x", "data_files": listed}]}
        assert split(*files, card=card) == {"train": ["other/c.parquet"]}
    card = {"configs": [{"config_name": "x", "data_dir": "other"}]}
    assert split(*files, card=card) == {"train": ["other/c.parquet"]}
    refused("has no files in else", *files, card={"configs": [{"data_dir": "else"}]})


@pytest.mark.parametrize(
    "pattern",
    [
        "../elsewhere/*.parquet",
        "/etc/*.parquet",
        "~/a.parquet",
        "data/../../b.parquet",
        "https://example.org/a.parquet",
        "hf://datasets/a/b/c.parquet",
        "..\\a.parquet",
    ],
)
def test_a_card_cannot_lead_out_of_the_folder(pattern):
    for config in ({"data_files": pattern}, {"data_dir": pattern}):
        refused("may lie outside of it", "a.parquet", card={"configs": [config]})


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        ("data/*.parquet", "there is no such file"),
        ("*.csv", "neither Parquet nor Arrow"),
        ([{"split": "train"}], "no names of files"),
        ([3], "no names of files"),
        ([{"split": "train", "path": [None]}], "no names of files"),
    ],
)
def test_cards_that_do_not_fit(listed, match):
    card = {"configs": [{"config_name": "x", "data_files": listed}]}
    refused(match, "a.parquet", "b.csv", card=card)


def test_many_stars_take_no_time():
    pattern = "/".join(["**", "*"] * 40) + "/x.parquet"
    name = "/".join("a" * 60) + "/y.parquet"
    refused("there is no such file", name, card={"configs": [{"data_files": pattern}]})


def test_several_configurations():
    configs = [{"config_name": name, "data_files": f"{name}/*"} for name in ("plain", "blurred")]
    files = ("plain/0.parquet", "blurred/0.parquet")
    refused(r"several configurations \(plain, blurred\)", *files, card={"configs": configs})
    configs[1]["default"] = True
    assert split(*files, card={"configs": configs}) == {"train": ["blurred/0.parquet"]}


def test_front_matter():
    assert front_matter("# A title\n", "set") == {}
    assert front_matter("---\nconfigs:\n- config_name: a\n---\ntext", "set")["configs"]
    for text in (
        "---\na: [\n---\n",
        "---\n- 1\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\na: " + "b" * 600_000 + "\n---\n",
    ):
        with pytest.raises(InputError, match="has a head that cannot be read") as caught:
            front_matter(text, "set")
        assert "\n" not in str(caught.value)


def test_names_that_yaml_takes_for_something_else():
    names = "          '0': no\n          '1': 1.50\n          '2': 2020-01-01\n"
    text = (
        "\ufeff---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n"
        f"      class_label:\n        names:\n{names}---\n"
    )
    found = class_names(front_matter(text, "set"), "set")
    assert found == {"label": ("no", "1.50", "2020-01-01")}


@pytest.mark.parametrize("use", ["configs: {0}", "dataset_info: {{features: {0}}}", "a: {0}"])
def test_small_texts_that_stand_for_gigabytes(use):
    """Ten times ten times ... the same list; merged mappings multiply in the same way."""
    for first, rule in (("[x]", "[{0}]"), ("{x: 1}", "{{<<: [{0}]}}")):
        lines = [f"a0: &a0 {first}"]
        lines += [
            f"a{n}: &a{n} " + rule.format(",".join([f"*a{n - 1}"] * 10)) for n in range(1, 14)
        ]
        for wrap in ("*a13", "[*a13]", "[{config_name: *a13, data_files: *a13}]"):
            text = "\n".join(["---", *lines, use.format(wrap), "---", ""])
            card = front_matter(text, "set")
            assert class_names(card, "set") == {}
            try:
                split("a.parquet", card=card)
            except InputError as error:
                assert len(str(error)) < 400


def test_class_names_of_a_card():
    names = {str(n): f"c{n}" for n in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)}
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "kind", "dtype": {"class_label": {"names": names}}},
    ]
    expected = {"kind": tuple(f"c{n}" for n in range(11))}
    assert class_names({"dataset_info": {"features": features}}, "set") == expected
    card = {
        "configs": [{"config_name": "a"}, {"config_name": "b", "default": True}],
        "dataset_info": [
            {"config_name": "a", "features": [features[0]]},
            {"config_name": "b", "features": features},
        ],
    }
    assert class_names(card, "set") == expected
    for odd in (None, 3, [None], {"features": 3}, {"features": [3, {"dtype": "image"}]}):
        assert class_names({"dataset_info": odd}, "set") == {}
