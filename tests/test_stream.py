"""Class folders, the crops, and batches that are a function of seed and step alone."""

import dataclasses
import itertools
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lagrangian_jax import data
from lagrangian_jax.data import flowers, images

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def small_flowers(tmp_path):
    """Three classes of 20, 30 and 50 JPEG files of different sizes."""
    rng = np.random.default_rng(0)
    for name, count in {"rose": 30, "daisy": 20, "tulip": 50}.items():
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(count):
            array = rng.integers(0, 256, (40 + i, 70 - i, 3), np.uint8)
            Image.fromarray(array).save(tmp_path / "flowers" / name / f"{i:03d}.jpg")
    return SimpleNamespace(
        name="flowers", dir=str(tmp_path / "flowers"), cache_dir=str(tmp_path / "cache"), validation=10
    )


@dataclasses.dataclass(frozen=True)
class Painted:
    """A source whose image with index i is painted in the grey levels i and i // 2; sizes differ."""

    labels: np.ndarray
    indices: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        paint = int(self.indices[row])
        array = np.full((30 + paint % 7, 50 - paint % 5, 3), paint, np.uint8)
        array[:, : 25 + paint % 3] //= 2
        return Image.fromarray(array), int(self.labels[row])

    def take(self, rows):
        return Painted(self.labels[rows], self.indices[rows])


def painted(count):
    return Painted(np.arange(count, dtype=np.int32) % 3, np.arange(count, dtype=np.int32))


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in ("images", "labels", "index"))


# ---- Class folders -------------------------------------------------------------------------------


def test_flowers(small_flowers):
    dataset = data.load(small_flowers)
    assert dataset.classes == ("daisy", "rose", "tulip")
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [np.bincount(split.labels).tolist() for split in splits] == [[14, 21, 35], [2, 3, 5], [4, 6, 10]]
    files = [file for split in splits for file in split.files]
    assert len(set(files)) == 100
    for split in splits:
        assert all(
            file.parent.name == dataset.classes[label] for file, label in zip(split.files, split.labels, strict=True)
        )
    image, label = dataset.test[0]
    with Image.open(dataset.test.files[0]) as original:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(original))
    assert label == 0
    again = data.load(SimpleNamespace(**vars(small_flowers) | {"validation": 0}))
    assert again.test.files == dataset.test.files


@pytest.mark.parametrize("name", ["test", "val"])
def test_folders_for_training_and_testing(small_flowers, name):
    """As torchvision's ImageFolder is given; a class without test images keeps its number."""
    folder = pathlib.Path(small_flowers.dir)
    (folder / "train").mkdir()
    for flower in ("daisy", "rose", "tulip"):
        (folder / flower).rename(folder / "train" / flower)
    (folder / name / "tulip").mkdir(parents=True)
    for i in range(7):
        (folder / "train" / "tulip" / f"{i:03d}.jpg").rename(folder / name / "tulip" / f"{i:03d}.jpg")
    dataset = data.load(small_flowers)
    assert dataset.classes == ("daisy", "rose", "tulip")
    assert np.bincount(dataset.test.labels).tolist() == [0, 0, 7]
    assert len(dataset.train) + len(dataset.validation) == 93
    assert {file.parent.parent.name for file in dataset.test.files} == {name}
    assert {file.parent.parent.name for file in dataset.train.files} == {"train"}
    assert dataset.remark == "93 training and 7 test images from class folders."
    (folder / name / "weed").mkdir()
    with pytest.raises(data.DataError, match=f"{name}/weed is of no class that is trained on: daisy, rose, tulip"):
        data.load(small_flowers)


def test_classes_may_be_called_train_and_test(small_flowers):
    folder = pathlib.Path(small_flowers.dir)
    (folder / "rose").rename(folder / "test")
    (folder / "daisy").rename(folder / "train")
    assert data.load(small_flowers).classes == ("test", "train", "tulip")


def test_flowers_reports_damaged_files_by_name(small_flowers, monkeypatch):
    folder = pathlib.Path(small_flowers.dir)
    (folder / "rose" / "003.jpg").write_bytes((folder / "rose" / "003.jpg").read_bytes()[:-200])
    (folder / "tulip" / "004.jpg").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"003\.jpg.*\n.*004\.jpg"):
        data.load(small_flowers)
    (folder / "rose" / "003.jpg").unlink()
    (folder / "tulip" / "004.jpg").unlink()
    data.load(small_flowers)
    monkeypatch.setattr(flowers, "_check", lambda *_: pytest.fail("decoded again"))
    data.load(small_flowers)


def test_flowers_with_an_empty_folder(small_flowers):
    """Its class would be missing, and nobody told."""
    folder = pathlib.Path(small_flowers.dir) / "orchid"
    folder.mkdir()
    (folder / "000.webp").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"flowers/orchid holds no image \(\.jpeg, \.jpg, \.png\)"):
        data.load(small_flowers)


def test_flowers_without_classes(tmp_path):
    config = SimpleNamespace(name="flowers", dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(data.DataError, match="holds 0 folders with images"):
        data.load(config)
    config.dir = str(tmp_path / "nowhere")
    with pytest.raises(data.DataError, match=r"nowhere is not a directory.*kaggle"):
        data.load(config)


def test_real_flowers():
    if not (SHARED / "flowers").is_dir():
        pytest.skip("the flowers (../shared/data/flowers) are not here")
    dataset = data.load(SimpleNamespace(name="flowers", dir=str(SHARED / "flowers"), validation=64))
    assert dataset.classes == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 4307


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_images_become_rgb(tmp_path, depth):
    """Pillow cuts 16 bits off at 255, which leaves white images."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey * depth(np.iinfo(depth).max // 255)).save(tmp_path / "grey.png")
    image = np.asarray(images.read_image(tmp_path / "grey.png", "grey.png"))
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=-1))


# ---- Crops on the host ---------------------------------------------------------------------------


def test_random_boxes_have_the_area_and_the_shape_that_they_should():
    rng = np.random.default_rng(0)
    boxes = np.array([images.random_box(500, 375, rng) for _ in range(4000)])
    left, upper, right, lower = boxes.T
    assert left.min() >= 0
    assert upper.min() >= 0
    assert right.max() <= 500
    assert lower.max() <= 375
    boxes = np.array([images.random_box(500, 375, rng, scale=(0.1, 0.5)) for _ in range(4000)])  # these all fit
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, log_aspect = widths * heights / (500 * 375), np.log(widths / heights)
    for values, low, high in ((area, 0.1, 0.5), (log_aspect, np.log(3 / 4), np.log(4 / 3))):
        uniform = np.linspace(low, high, 4001)[1:]
        assert np.max(np.abs(np.sort(values) - uniform)) < 0.05 * (high - low)
    assert abs(np.mean(boxes[:, 0] / (500 - widths)) - 0.5) < 0.02
    assert abs(np.mean(boxes[:, 1] / (375 - heights)) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))]
)
def test_random_box_falls_back_to_the_centre(size, box):
    assert images.random_box(*size, np.random.default_rng(0)) == box


def test_random_crop_is_the_box_resized_and_flipped_half_of_the_time():
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    flips = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        box = images.random_box(60, 40, rng)
        expected = np.asarray(Image.fromarray(array[box[1] : box[3], box[0] : box[2]]).resize((16, 16), Image.BILINEAR))
        out = np.asarray(images.random_crop(Image.fromarray(array), 16, np.random.default_rng(seed)))
        flipped = not np.array_equal(out, expected)
        flips += flipped
        np.testing.assert_array_equal(out, expected[:, ::-1] if flipped else expected)
    assert 30 < flips < 70


@pytest.mark.parametrize(
    ("size", "resized", "corner"), [((500, 375), (341, 256), (58, 16)), ((300, 451), (256, 384), (16, 80))]
)
def test_centre_crop(size, resized, corner):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    whole = np.asarray(image.resize(resized, Image.BILINEAR))
    expected = whole[corner[1] : corner[1] + 224, corner[0] : corner[0] + 224]
    np.testing.assert_array_equal(np.asarray(images.centre_crop(image, 224)), expected)
    assert images.centre_crop(image, 64).size == (64, 64)


# ---- Streams -------------------------------------------------------------------------------------


def batches(source, count=None, **arguments):
    stream = data.stream(source, **{"batch_size": 8, "train": True, "image_size": 16} | arguments)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def test_a_resumed_stream_gives_the_batches_of_an_uninterrupted_one():
    whole = batches(painted(30), 9, seed=3)
    for start in (1, 3, 5):  # within an epoch of three batches, at its end, and in the next
        resumed = batches(painted(30), 9 - start, seed=3, start_step=start)
        assert all(same(x, y) for x, y in zip(whole[start:], resumed, strict=True))
    assert not same(whole[0], batches(painted(30), 1, seed=4)[0])


def test_epochs_are_permutations_without_the_last_partial_batch():
    source = painted(30)
    whole = batches(source, 6)
    first, second = (np.concatenate([batch["index"] for batch in whole[i : i + 3]]) for i in (0, 3))
    assert len(set(first)) == len(set(second)) == 24
    assert first.tolist() != second.tolist()
    for batch in whole:
        assert batch["images"].shape == (8, 16, 16, 3)
        assert (batch["images"].dtype, batch["labels"].dtype, batch["index"].dtype) == (np.uint8, np.int32, np.int32)
        np.testing.assert_array_equal(batch["labels"], source.labels[batch["index"]])
        assert all(
            set(np.unique(image)) <= set(range(row // 2, row + 1))
            for image, row in zip(batch["images"], batch["index"], strict=True)
        )
    shorter = batches(source, 4, steps_per_epoch=2)
    assert all(same(x, y) for x, y in zip(shorter, [*whole[:2], *whole[3:5]], strict=True))


def test_an_image_is_cropped_anew_in_every_epoch():
    seen = {}
    for batch in batches(painted(8), 6):
        for image, row in zip(batch["images"], batch["index"].tolist(), strict=True):
            seen.setdefault(row, []).append(image.tobytes())
    assert np.mean([len(set(crops)) for crops in seen.values()]) > 3


def test_processes_share_every_batch():
    whole = batches(painted(30), 5)
    parts = [batches(painted(30), 5, shard=(process, 2)) for process in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert same(batch, {name: np.concatenate([share[name] for share in shares]) for name in batch})
    assert parts[0][0]["index"].shape == (4,)


def test_a_test_stream_is_the_source_once_in_order():
    source = painted(18)
    whole = batches(source, train=False)
    assert [len(batch["index"]) for batch in whole] == [8, 8, 2]
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in whole]), np.arange(18))
    np.testing.assert_array_equal(whole[0]["images"][5], np.asarray(images.centre_crop(source[5][0], 16)))
    assert [len(batch["index"]) for batch in batches(source, train=False, shard=(1, 2))] == [4, 4, 0]
    assert [len(batch["index"]) for batch in batches(source, train=False, start_step=2)] == [2]
    split = data.resident(source.take(np.arange(3, 18)), image_size=16)
    np.testing.assert_array_equal(split.images[:5], whole[0]["images"][3:])
    np.testing.assert_array_equal(split.indices, np.arange(3, 18))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 9, "shard": (0, 2)}, "multiple of the 2 processes, got 9"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 31}, "at most the 30 training images, got 31"),
        ({"shard": (2, 2)}, "shard"),
        ({"steps_per_epoch": 4}, "0 to 3 batches of 8 images, got 4"),
    ],
)
def test_stream_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(painted(30), 1, **arguments)


def test_worker_processes_give_the_same_batches_and_name_what_has_vanished(small_flowers):
    train = data.load(small_flowers).train
    alone = batches(train, 6)
    gone = train.files[alone[5]["index"][3]]
    gone.unlink()
    stream = data.stream(train, batch_size=8, train=True, image_size=16, workers=2, start_step=3)
    assert all(same(alone[step], next(stream)) for step in (3, 4))
    with pytest.raises(data.DataError, match=rf"{gone.name}: not there any more"):
        next(stream)


@pytest.mark.slow
def test_workers_end_with_a_reader_that_is_killed(small_flowers, tmp_path):
    program = tmp_path / "reader.py"
    program.write_text(
        "import os, signal, multiprocessing, types\n"
        "from lagrangian_jax import data\n"
        "if __name__ == '__main__':\n"
        f"    train = data.load(types.SimpleNamespace(**{vars(small_flowers)!r})).train\n"
        "    next(data_stream := data.stream(train, batch_size=8, train=True, image_size=16, workers=2))\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Standard error is not captured: the workers hold it, and waiting for its end would wait for theirs.
    out = subprocess.run([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, timeout=120)
    workers = [int(pid) for pid in out.stdout.split()]
    assert len(workers) == 2
    assert not any(pathlib.Path(f"/proc/{pid}/environ").exists() and _alive(pid) for pid in workers)


def _alive(pid):
    return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
