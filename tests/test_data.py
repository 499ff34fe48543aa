"""Data sets in memory or in TFDS form, their fixed divisions, and what is said when they are not as expected."""

import io
import itertools
import json
import os
import pathlib
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lagrangian_jax import data
from lagrangian_jax.data import cache, cifar10, imagenet100, prepare, records
from lagrangian_jax.data.dataset import hold_out

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


# ---- Small data sets, written as TFDS writes them --------------------------------------------


def write_records(folder, name, version, splits, names, encoding):
    """Writes a data set as TFDS does; ``splits``: name -> list of {image: bytes, label: int, text feature: str}."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    path = pathlib.Path(folder) / name / version
    path.mkdir(parents=True)
    text = next(key for key in splits["train"][0] if key not in ("image", "label"))
    tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format=encoding),
            "label": tfds.features.ClassLabel(names=names),
            text: tfds.features.Text(),
        }
    ).save_config(path)
    described = []
    for split, rows in splits.items():
        shards = np.array_split(np.arange(len(rows)), 2)
        for number, shard in enumerate(shards):
            writer = ArrayRecordWriter(str(path / f"{name}-{split}.array_record-{number:05d}-of-00002"), "group_size:1")
            for row in shard:
                values = {key: value.encode() if isinstance(value, str) else value for key, value in rows[row].items()}
                feature = {
                    key: tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[value]))
                    if isinstance(value, int)
                    else tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
                    for key, value in values.items()
                }
                example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
                writer.write(example.SerializeToString())
            writer.close()
        described.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(shard)) for shard in shards],
            }
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": described, "moduleName": "none"}
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path


def encoded(array, form="png"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """60 training and 20 test images, stored in shuffled order; the images by split, in order of their ids."""
    sizes = {"train": 60, "test": 20}
    monkeypatch.setattr(cifar10, "SIZES", sizes)
    rng = np.random.default_rng(0)
    pixels = {split: rng.integers(0, 256, (count, 32, 32, 3), np.uint8) for split, count in sizes.items()}
    rows = {
        split: [
            {"id": f"{split}_{i:05d}", "image": encoded(pixels[split][i]), "label": i % 10}
            for i in rng.permutation(count).tolist()
        ]
        for split, count in sizes.items()
    }
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    path = write_records(tmp_path / "tfds", "cifar10", "3.0.2", rows, names, "png")
    config = SimpleNamespace(
        name="cifar10", dir=str(tmp_path / "tfds"), cache_dir=str(tmp_path / "cache"), validation=10
    )
    return SimpleNamespace(config=config, pixels=pixels, path=path)


# ---- Dividing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 60, 99, 100])
def test_hold_out_is_balanced_disjoint_and_complete(count):
    labels = np.repeat([0, 1, 2], [20, 30, 50])
    kept, held = hold_out(labels, count)
    assert len(held) == count
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(100))
    share = np.array([20, 30, 50]) * count / 100
    assert np.all(np.abs(np.bincount(labels[held], minlength=3) - share) <= 1)
    np.testing.assert_array_equal(held, hold_out(labels, count)[1])
    assert count in (0, 100) or not np.array_equal(held, hold_out(labels, count, seed=1)[1])


def test_digits():
    dataset = data.load(SimpleNamespace(name="digits", validation=200))
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split.labels) for split in splits] == [1237, 200, 360]
    assert dataset.train.images.shape == (1237, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    assert dataset.classes == tuple("0123456789")
    assert sorted(np.concatenate([split.indices for split in splits])) == list(range(1797))
    for split in splits:
        share = len(split.labels) / 10
        assert np.all(np.abs(np.bincount(split.labels) - share) <= max(2, 0.05 * share))
    assert dataset.train.images.max() == 255
    assert dataset.train.images.min() == 0
    again = data.load(SimpleNamespace(name="digits", validation=0))
    np.testing.assert_array_equal(again.test.images, dataset.test.images)  # whatever is held out for validation
    assert len(again.validation.labels) == 0
    assert len(again.train.labels) == 1437


def test_digits_of_another_size():
    assert data.load(SimpleNamespace(name="digits", image_size=16)).test.images.shape == (360, 16, 16, 3)


# ---- CIFAR-10 ------------------------------------------------------------------------------------


def test_cifar10_is_in_published_order(small_cifar10):
    dataset = data.load(small_cifar10.config)
    pixels = small_cifar10.pixels
    np.testing.assert_array_equal(dataset.test.images, pixels["test"])
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    for split in (dataset.train, dataset.validation):
        np.testing.assert_array_equal(split.images, pixels["train"][split.indices])
        np.testing.assert_array_equal(split.labels, split.indices % 10)
    assert len(dataset.validation.labels) == 10
    assert sorted([*dataset.train.indices, *dataset.validation.indices]) == list(range(60))
    assert dataset.classes[8] == "ship"
    assert dataset.remark == ""


def test_cifar10_three_classes(small_cifar10):
    dataset = data.load(SimpleNamespace(**vars(small_cifar10.config) | {"name": "cifar10_three_classes"}))
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [8, 10, 6]
    np.testing.assert_array_equal(dataset.test.indices, [0, 1, 2, 10, 11, 12])
    np.testing.assert_array_equal(dataset.test.images, small_cifar10.pixels["test"][dataset.test.indices])
    assert dataset.classes == ("airplane", "automobile", "bird")


def test_cifar10_says_what_is_not_exact(small_cifar10):
    listed = pathlib.Path(small_cifar10.config.dir).parent / "cifar10_not_exact.json"
    listed.write_text(json.dumps({"train": [3, 8, 18], "test": [4]}))
    assert data.load(small_cifar10.config).remark.startswith("3 of the 60 training images and 1 of the 20 test images")
    three = SimpleNamespace(**vars(small_cifar10.config) | {"name": "cifar10_three_classes"})
    assert data.load(three).remark == ""  # none of them is of the three classes
    listed.write_text("[]")
    with pytest.raises(data.DataError, match=r"cifar10_not_exact\.json"):
        data.load(small_cifar10.config)


def test_cifar10_is_decoded_once_and_again_when_the_cache_is_damaged(small_cifar10, monkeypatch, caplog):
    first = data.load(small_cifar10.config)
    (file,) = pathlib.Path(small_cifar10.config.cache_dir).iterdir()
    with monkeypatch.context() as context:
        context.setattr(cifar10, "_read", lambda *_: pytest.fail("decoded again"))
        assert np.array_equal(data.load(small_cifar10.config).train.images, first.train.images)
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask  # other users of a shared folder may read it
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], whole[:10], b"", bytes(flipped)):
        file.write_bytes(damaged)
        caplog.clear()
        assert np.array_equal(data.load(small_cifar10.config).train.images, first.train.images)
        assert "damaged" in caplog.text
        assert file.read_bytes() == whole
        assert [file] == list(file.parent.iterdir())  # nothing temporary is left
    os.utime(next(small_cifar10.path.glob("*train*00000*")), (1, 1))  # other data under the same name
    data.load(small_cifar10.config)
    assert len(list(file.parent.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(small_cifar10, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    small_cifar10.config.cache_dir = str(tmp_path / "file" / "cache")
    assert len(data.load(small_cifar10.config).test.labels) == 20
    assert "could not be written" in caplog.text


def test_cifar10_lacks_an_image(small_cifar10, monkeypatch):
    monkeypatch.setattr(cifar10, "SIZES", {"train": 61, "test": 20})
    with pytest.raises(data.DataError, match="lacks 1 of 61 train"):
        data.load(small_cifar10.config)


def test_cifar10_record_file_has_vanished(small_cifar10):
    (gone,) = small_cifar10.path.glob("*test*00001*")
    gone.unlink()
    with pytest.raises(data.DataError, match=gone.name):
        data.load(small_cifar10.config)


def test_cifar10_record_file_is_truncated(small_cifar10):
    (file,) = small_cifar10.path.glob("*test*00001*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(data.DataError, match=r"cifar10.*test"):
        data.load(small_cifar10.config)


def test_reading_does_not_import_tensorflow(small_cifar10):
    program = (
        "import sys, types; from lagrangian_jax import data; from lagrangian_jax.data import cifar10; "
        "cifar10.SIZES = {'train': 60, 'test': 20}; "
        f"data.load(types.SimpleNamespace(**{vars(small_cifar10.config)!r})); "
        "print('tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert out.stdout.split() == ["False", "True"]


def test_real_cifar10(cifar10_test):
    directory = os.environ.get("TFDS_DATA_DIR", str(SHARED / "tfds"))
    dataset = data.load(SimpleNamespace(name="cifar10", dir=directory, validation=1024))
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [48976, 1024, 10000]
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert set(np.bincount(dataset.validation.labels)) == {102, 103}
    assert not set(dataset.train.indices) & set(dataset.validation.indices)
    pixels, labels = cifar10_test(256)
    np.testing.assert_array_equal(dataset.test.images[:256].astype(np.float32) / 255, pixels)
    np.testing.assert_array_equal(dataset.test.labels[:256], labels)
    if (pathlib.Path(directory).resolve().parent / "cifar10_not_exact.json").exists():
        assert "20 of the 10,000 test images" in dataset.remark


# ---- Class folders -------------------------------------------------------------------------------


def test_class_folders_whose_names_are_not_utf8(tmp_path):
    """As archives from Windows unpack; a class's name goes into files that are UTF-8, and stays one of its own."""
    names = [b"L\xe4wenzahn", b"L\xf6wenzahn", "Löwenzahn".encode()]
    try:
        for name in names:
            os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    for folder in tmp_path.iterdir():
        for i in range(5):
            (folder / f"{i}.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
    dataset = data.load(SimpleNamespace(name="flowers", dir=str(tmp_path), cache_dir=str(tmp_path / ".cache")))
    assert sorted(dataset.classes) == ["L\\xe4wenzahn", "L\\xf6wenzahn", "Löwenzahn"]
    assert {os.fsencode(file.parent.name) for file in dataset.train.files} == set(names)
    for row in range(len(dataset.train)):
        name = dataset.classes[dataset.train.labels[row]]
        assert os.fsencode(dataset.train.files[row].parent.name).decode(errors="backslashreplace") == name


# ---- ImageNet-100 --------------------------------------------------------------------------------


def test_imagenet100(tmp_path, monkeypatch):
    names = [f"n{10 * i:08d}" for i in range(1000)]
    rng = np.random.default_rng(0)
    taken = [(label, copy) for label in range(0, 1000, 10) for copy in range(2)]
    others = [(label, 0) for label in (1, 5, 999)]

    def rows(split):
        chosen = [*taken, *others] if split == "train" else taken[::2]
        return [
            {
                "file_name": f"{names[label]}_{copy}.JPEG" if split == "train" else f"ILSVRC2012_val_{label:08d}.JPEG",
                "image": encoded(np.full((20, 30, 3), label // 10, np.uint8), "jpeg"),
                "label": label,
            }
            for label, copy in [chosen[i] for i in rng.permutation(len(chosen))]
        ]

    path = write_records(
        tmp_path, "imagenet2012", "5.1.0", {"train": rows("train"), "validation": rows("validation")}, names, "jpeg"
    )
    config = SimpleNamespace(name="imagenet100", dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), validation=100)
    dataset = data.load(config)
    assert dataset.classes == tuple(names[::10])
    assert [len(source) for source in (dataset.train, dataset.validation, dataset.test)] == [100, 100, 100]
    np.testing.assert_array_equal(dataset.train.labels, np.arange(100))  # one of each class, in order of file names
    for source in (dataset.train, dataset.validation, dataset.test):
        for row in (0, 57, 99):
            image, label = source[row]
            assert label == source.labels[row]
            np.testing.assert_array_equal(np.asarray(image), label)
            assert image.size == (30, 20)

    with monkeypatch.context() as context:  # the index is read from the cache
        context.setattr(imagenet100, "_index", lambda *_: pytest.fail("indexed again"))
        again = data.load(config)
    np.testing.assert_array_equal(again.train.indices, dataset.train.indices)
    batch = next(data.stream(again.train, batch_size=4, train=True, image_size=8))
    np.testing.assert_array_equal(batch["images"], batch["labels"][:, None, None, None] * np.ones((8, 8, 3)))

    label_file = path / "label.labels.txt"
    label_file.write_text("\n".join(reversed(names)) + "\n")
    with pytest.raises(data.DataError, match="WordNet"):
        data.load(config)


def test_imagenet100_without_a_class(tmp_path):
    row = {"file_name": "a", "image": encoded(np.zeros((4, 4, 3), np.uint8)), "label": 0}
    write_records(
        tmp_path,
        "imagenet2012",
        "5.1.0",
        {"train": [row] * 2, "validation": [row] * 2},
        list("abcdefghijklmnopqrst"),
        "png",
    )
    with pytest.raises(data.DataError, match="train holds no image of k"):
        data.load(SimpleNamespace(name="imagenet100", dir=str(tmp_path), cache_dir=str(tmp_path / "cache")))


# ---- What is wrong, and what to do ---------------------------------------------------------------


def test_unknown_name():
    assert data.names() == ("digits", "cifar10", "cifar10_three_classes", "imagenet100", "flowers")
    with pytest.raises(ValueError, match="'cifar_10'; did you mean 'cifar10'"):
        data.load(SimpleNamespace(name="cifar_10"))


@pytest.mark.parametrize(("name", "prepared"), [("cifar10", "cifar10"), ("imagenet100", "imagenet2012")])
def test_missing_data_set_names_the_place_and_the_command(tmp_path, monkeypatch, name, prepared):
    command = rf"data\.prepare {prepared} --dir {tmp_path}"
    with pytest.raises(data.DataError, match=rf"not found in {tmp_path / prepared} .*{command}"):
        data.load(SimpleNamespace(name=name, dir=str(tmp_path)))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(data.DataError, match=command):
        data.load(SimpleNamespace(name=name, dir=""))


def test_data_set_in_another_format(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(data.DataError, match="prepared as tfrecord") as raised:
        data.load(SimpleNamespace(name="cifar10", dir=str(tmp_path)))
    # TFDS keeps one format in a folder, so that preparing in the same one would fail.
    other = tmp_path / "array_record"
    assert f"with TFDS_DATA_DIR={other} or --config.data.dir={other}, and prepare it there" in str(raised.value)
    assert str(raised.value).endswith(f"prepare cifar10 --dir {other}")
    with pytest.raises(data.DataError, match=rf"prepared as tfrecord.*prepare cifar10 --dir {other}$"):
        prepare.prepare("cifar10", str(tmp_path))
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{")
    with pytest.raises(data.DataError, match=r"dataset_info\.json: cannot be read"):
        data.load(SimpleNamespace(name="cifar10", dir=str(tmp_path)))


def test_printed_commands_hold_with_a_space_in_the_path(tmp_path):
    folder = tmp_path / "data sets"
    with pytest.raises(data.DataError) as raised:
        data.load(SimpleNamespace(name="cifar10", dir=str(folder)))
    assert shlex.split(str(raised.value).partition("&& ")[2])[-2:] == ["--dir", str(folder)]
    (folder / "cifar10" / "3.0.2").mkdir(parents=True)
    (folder / "cifar10" / "3.0.2" / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(data.DataError) as raised:
        data.load(SimpleNamespace(name="cifar10", dir=str(folder)))
    other = folder / "array_record"
    assert shlex.split(str(raised.value).partition("&& ")[2])[-2:] == ["--dir", str(other)]
    assert f"with 'TFDS_DATA_DIR={other}' or '--config.data.dir={other}', and" in str(raised.value)


def test_newest_version(tmp_path):
    for version in ("3.0.2", "3.0.10", "incomplete.x"):
        (tmp_path / "cifar10" / version).mkdir(parents=True)
        (tmp_path / "cifar10" / version / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert records.find("cifar10", SimpleNamespace(dir=str(tmp_path))).name == "3.0.10"


@pytest.mark.parametrize("validation", [-1, 1437, 1438])
def test_validation_that_leaves_nothing_to_train_on(validation):
    expected = rf"^data\.validation: expected 0 to 1436 .*, got {validation}; set --config\.data\.validation=N$"
    with pytest.raises(data.DataError, match=expected):
        data.load(SimpleNamespace(name="digits", validation=validation))


@pytest.mark.parametrize("count", [-1, 4])
def test_hold_out_of_more_than_there_are_is_not_about_a_field(count):
    with pytest.raises(data.DataError, match=rf"^count: expected 0 to 3 images to hold out, got {count}$"):
        hold_out(np.zeros(3, np.int32), count)


def test_hold_out_of_one_hot_labels():
    with pytest.raises(data.DataError, match=r"^labels: expected \(N,\), a class's number each; got \(4, 2\)$"):
        hold_out(np.eye(4, 2), 1)


def test_a_loader_returns_a_dataset(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "mine", lambda config: (np.zeros((4, 8, 8, 3)), np.zeros(4)))
    with pytest.raises(data.DataError, match=r"^data set 'mine': expected .* a data\.Dataset; got a tuple$"):
        data.load(SimpleNamespace(name="mine"))


def test_cifar10_has_one_size(small_cifar10):
    small_cifar10.config.image_size = 64
    with pytest.raises(data.DataError, match="CIFAR-10 is 32x32, got 64"):
        data.load(small_cifar10.config)


def test_no_flipped_bit_and_no_missing_end_of_a_cache_goes_unnoticed(tmp_path):
    arrays = {"first": np.arange(5, dtype=np.int32), "second": np.zeros((2, 3), np.uint8)}
    path = tmp_path / "a.npz"
    cache.cached(path, arrays, lambda: arrays)
    whole = path.read_bytes()
    flipped = (whole[:i] + bytes([whole[i] ^ (1 << (i % 8))]) + whole[i + 1 :] for i in range(0, len(whole), 3))
    for content in itertools.chain(flipped, (whole[:i] for i in range(0, len(whole), 9))):
        path.write_bytes(content)
        again = cache.cached(path, arrays, lambda: arrays)
        assert all(np.array_equal(again[name], arrays[name]) for name in arrays)


def test_fingerprint_is_of_place_size_and_time(tmp_path):
    (tmp_path / "a").write_text("one")
    first = cache.fingerprint([tmp_path / "a"])
    assert first == cache.fingerprint([tmp_path / "a"])
    (tmp_path / "a").write_text("three")
    assert first != cache.fingerprint([tmp_path / "a"])


def test_prepare_needs_tensorflow_and_a_known_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["prepare", "cifar10", "--dir", str(tmp_path)])
    assert prepare.main() == 1
    assert "pip install 'lagrangian_jax[prepare]'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did you mean 'imagenet2012'"):
        prepare.prepare("imagenet2010", str(tmp_path))
