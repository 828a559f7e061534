"""Batches are a function of seed and step, crops are where they should be, errors name the file."""

import io
import itertools
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lipreg.datasets import streamed

N, SIDE = 23, 8


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.uint8(image))
    image.save(path, **options)


def grey(value, width=12, height=10):
    return np.full((height, width, 3), value, np.uint8)


def slope(width, height):
    """An image whose red and green pixels say where in it they are."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.uint8(np.stack([columns, rows, np.full_like(rows, 128)], -1).round())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Training images of one grey each, 0 to 220 in tens, in three classes; five to test."""
    root = tmp_path_factory.mktemp("images")
    for i in range(N):
        write(root / "train" / "abc"[i % 3] / f"{i}.png", grey(10 * i, 9 + i, 30 - i))
    for i in range(5):
        write(root / "validation" / "abc"[i % 3] / f"{i}.jpg", grey(200 + i), quality=100)
    (root / "train" / "a" / "Thumbs.db").write_text("not an image, and not taken for one")
    return root


@pytest.fixture(scope="module")
def slopes(tmp_path_factory):
    """Eight training images whose crops show, in one class."""
    root = tmp_path_factory.mktemp("slopes")
    for i in range(9):
        write(root / "train" / "one" / f"{i}.jpg", slope(40 + i, 30), quality=95)
    return root


def training(folder, **options):
    options = {"dir": folder, "side": SIDE, "threads": 0, "validation": 0.01} | options
    return streamed.load("folder", "train", **options)


def first(dataset, steps, batch_size=4, *, seed=0, **options):
    return list(itertools.islice(dataset.batches(batch_size, seed=seed, **options), steps))


def same(found, expected):
    for (x, y), (x_expected, y_expected) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, x_expected)
        np.testing.assert_array_equal(y, y_expected)


def numbers(batches):
    """Which images of `folder` are in each batch: a crop of one grey is that grey."""
    assert all((x == x[:, :1, :1, :1]).all() for x, _ in batches)
    return np.array([x[:, 0, 0, 0] // 10 for x, _ in batches])


# Splits


def test_a_folder_is_split_like_a_set_in_memory_and_labels_are_places_of_sorted_names(folder):
    parts = [
        streamed.load("folder", split, dir=folder, side=SIDE, validation=0.2)
        for split in ("train", "validation", "test")
    ]
    assert [len(part) for part in parts] == [18, 5, 5]
    for part in parts:
        assert (part.classes, part.shape) == (3, (SIDE, SIDE, 3))
    samples = [part.sample(len(part)) for part in parts]
    for x, y, classes, names in samples:
        assert names == tuple(sorted(names)) == parts[0].names
        assert (x.shape[1:], x.dtype, y.dtype, classes) == ((SIDE, SIDE, 3), np.uint8, np.int32, 3)
    held = [samples[i].x[:, 0, 0, 0] // 10 for i in (0, 1)]
    assert sorted([*held[0], *held[1]]) == list(range(N))
    for i in (0, 1):
        np.testing.assert_array_equal(samples[i].y, held[i] % 3)
    assert sorted(samples[2].x[:, 0, 0, 0]) == [200, 201, 202, 203, 204]
    np.testing.assert_array_equal(samples[2].y, (samples[2].x[:, 0, 0, 0] - 200) % 3)


def test_the_seed_moves_the_partition_and_the_same_one_gives_it_again(folder):
    held_out = lambda seed: set(
        streamed.load("folder", "validation", dir=folder, seed=seed, validation=0.3).rows
    )
    assert held_out(0) == held_out(0) != held_out(1)


def test_a_sample_is_the_first_images_of_a_longer_one_and_not_of_one_class(folder):
    dataset = training(folder)
    few, many = dataset.sample(6), dataset.sample(12)
    np.testing.assert_array_equal(few.x, many.x[:6])
    assert len(set(few.y)) > 1  # by name, the first six are all of class a
    test = streamed.load("folder", "test", dir=folder, side=SIDE).sample(5)
    assert sorted(test.y) == [0, 0, 1, 1, 2] != test.y.tolist()
    for n in (0, 23):
        with pytest.raises(ValueError, match=f"n = {n}; it must be from 1 to the 22 examples"):
            dataset.sample(n)


# Batches


def test_an_epoch_is_a_permutation_without_the_rest_and_the_next_is_another_one(folder):
    batches = first(training(folder), 10)
    assert all(x.dtype == np.uint8 and y.dtype == np.int32 for x, y in batches)
    seen = numbers(batches).reshape(2, 20)  # 22 examples, of which two are left out
    assert [len(set(epoch)) for epoch in seen] == [20, 20]
    assert (seen[0] != seen[1]).any()
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), seen.ravel() % 3)


def test_an_epoch_is_not_that_of_another_seed(folder):
    # Grain numbers the epochs of a shuffle by adding to its seed, so that neighbours would share.
    epochs = {
        (seed, epoch): numbers(
            first(training(folder), 5, seed=seed, first_step=5 * epoch)
        ).tobytes()
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(set(epochs.values())) == 9


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_started_at_a_step_it_gives_the_batches_of_an_unbroken_run(slopes, start):
    dataset = training(slopes)
    whole = first(dataset, 8, 3)  # two batches an epoch
    same(first(dataset, 8 - start, 3, first_step=start), whole[start:])


def test_an_image_is_cropped_anew_in_every_epoch(slopes):
    x = np.concatenate([x for x, _ in first(training(slopes), 8, 4)])
    assert len({image.tobytes() for image in x}) == 32


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_a_single_one_by_rows(slopes, processes):
    dataset = training(slopes)
    shares = [
        first(dataset, 5, 4, first_step=1, process=p, processes=processes) for p in range(processes)
    ]
    for step, (x, y) in enumerate(first(dataset, 5, 4, first_step=1)):
        np.testing.assert_array_equal(np.concatenate([share[step][0] for share in shares]), x)
        np.testing.assert_array_equal(np.concatenate([share[step][1] for share in shares]), y)


def test_threads_change_no_batch(slopes):
    same(first(training(slopes, threads=3), 5), first(training(slopes), 5))


def test_workers_change_no_batch(slopes):
    same(first(training(slopes, workers=1), 5), first(training(slopes), 5))


@pytest.mark.parametrize(
    ("batch_size", "processes", "message"),
    [
        (0, 1, "batch_size = 0; it must be from 1 to the 22 examples"),
        (23, 1, "batch_size = 23; it must be from 1 to the 22 examples"),
        (4, 3, "batch_size = 4; it must be a multiple of the 3 processes"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_at_once(folder, batch_size, processes, message):
    with pytest.raises(ValueError, match=message):
        training(folder).batches(batch_size, seed=0, process=0, processes=processes)


# Crops


def test_random_boxes_have_the_areas_and_shapes_of_their_source_and_lie_anywhere():
    rng = np.random.default_rng(0)
    boxes = np.array([streamed.random_box(rng, 400, 300) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (boxes >= 0).all()
    assert (right <= 400).all()
    assert (bottom <= 300).all()
    area, ratio = (right - left) * (bottom - top) / 120_000, (right - left) / (bottom - top)
    assert 0.08 <= area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert abs(np.median(np.log(ratio[area < 0.5]))) < 0.03  # uniform in its logarithm
    assert 0.75 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-9
    assert (left.min() < 1) & (top.min() < 1) & (right.max() > 399) & (bottom.max() > 299)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1)])
def test_a_thin_image_has_boxes_of_a_permitted_shape_all_the_same(width, height):
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = streamed.random_box(rng, width, height)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 0.75 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def evaluated(tmp_path, image, side, suffix=".png", **options):
    write(tmp_path / "train" / "a" / f"0{suffix}", image, **options)
    write(tmp_path / "validation" / "a" / f"0{suffix}", image, **options)
    return streamed.load("folder", "test", dir=tmp_path, side=side).sample(1).x[0]


@pytest.mark.parametrize(("width", "height"), [(90, 64), (64, 90), (40, 40)])
def test_an_evaluation_sees_the_centre_of_the_image_resized_to_256_of_224(tmp_path, width, height):
    image = slope(width, height)
    found = evaluated(tmp_path, image, 28)
    scale = 32 / min(width, height)
    size = round(width * scale), round(height * scale)
    left, top = (size[0] - 28) / 2, (size[1] - 28) / 2
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((int(left), int(top), int(left) + 28, int(top) + 28)))
    assert np.abs(found.astype(int) - expected).max() <= 6  # half a pixel of the longer side


def test_a_large_jpeg_that_is_decoded_small_shows_the_same_picture(tmp_path):
    image = slope(601, 450)
    small = evaluated(tmp_path / "jpeg", image, 14, ".jpg", quality=98)
    full = evaluated(tmp_path / "png", image, 14)
    assert np.abs(small.astype(int) - full).max() <= 3
    assert np.ptp(full[..., 0]) > 100


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(grey(102)).convert(mode)
    suffix, options = (".jpg", {"quality": 100}) if mode == "CMYK" else (".png", {})
    found = evaluated(tmp_path, image, SIDE, suffix, **options)
    assert found.shape == (SIDE, SIDE, 3)
    assert np.abs(found.astype(int) - 102).max() <= 3


def test_sixteen_bits_become_their_high_byte(tmp_path):
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    deep = evaluated(tmp_path / "deep", Image.fromarray(values), 14)
    flat = evaluated(tmp_path / "flat", Image.fromarray(np.uint8(values >> 8)), 14)
    np.testing.assert_array_equal(deep, flat)
    assert np.ptp(deep) > 200


# Errors


@pytest.mark.parametrize("threads", [0, 2])
def test_a_file_that_is_no_image_is_named(folder, tmp_path, threads):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files = sorted((tmp_path / "train").glob("*/*.png"))
    for file in files:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError) as caught:
        first(training(tmp_path, threads=threads), 1)
    message = str(caught.value)
    assert "\n" not in message
    assert any(message.startswith(f"{file} cannot be read as an image: ") for file in files)
    with pytest.raises(ValueError, match=r"\.png cannot be read as an image"):
        training(tmp_path).sample(3)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("valid", {}, r"^No split 'valid'; choose one of train, validation, test\.$"),
        ("train", {"side": 0}, r"^side = 0; it must be 1 or more pixels\.$"),
        ("train", {"validation": 1.0}, r"^validation = 1\.0; it must be greater than 0 and less"),
        (
            "train",
            {"dir": "none"},
            r"^There is no none.train.CLASS.\*\.jpg; config\.data\.dir names",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_the_choices(folder, split, options, message):
    with pytest.raises(ValueError, match=message):
        streamed.load("folder", split, **{"dir": folder} | options)


def test_a_folder_that_lacks_something_is_told_what(folder, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"There is no .*train/CLASS/\*\.jpg"):
        streamed.load("folder", "train", dir=tmp_path)
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(ValueError, match=r"train \(\.jpg, \.jpeg, \.png\) has 0 images: none for"):
        streamed.load("folder", "train", dir=tmp_path)
    with pytest.raises(ValueError, match=r"There is no .*/test/CLASS/\*\.jpg"):
        streamed.load("folder", "test", dir=tmp_path)
    write(tmp_path / "train" / "a" / "0.png", grey(0))
    with pytest.raises(ValueError, match="has 1 images: none for the split 'train'"):
        streamed.load("folder", "train", dir=tmp_path)
    (tmp_path / "val" / "z").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"val has a class 'z' that .*train has not"):
        streamed.load("folder", "test", dir=tmp_path)


# TFDS


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=100)
    return file.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A small imagenet2012 that TFDS's own builder wrote, whose test split has no labels."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def examples(values, label):
        for i in values:
            image = jpeg(grey(10 * i, 9 + i, 30 - i))
            yield i, {"image": image, "label": label(i), "file_name": f"{i}.jpg"}

    builder = tfds.builder("imagenet2012", data_dir=folder)
    builder._split_generators = lambda *_, **__: {
        "train": examples(range(1, 16), lambda i: i),
        "validation": examples(range(16, 21), lambda i: 999 - i),
        "test": examples(range(1, 4), lambda i: -1),
    }
    builder.download_and_prepare(file_format="array_record")
    return folder


def test_a_prepared_imagenet_is_streamed_without_tensorflow(imagenet):
    load = lambda split: streamed.load("imagenet2012", split, dir=imagenet, side=SIDE)
    dataset = load("train")
    assert (len(dataset), dataset.classes, dataset.shape) == (13, 1000, (SIDE, SIDE, 3))
    (x, y), (again, _) = first(dataset, 2, 13)
    np.testing.assert_array_equal(x[:, 0, 0, 0], 10 * y)
    assert sorted(again[:, 0, 0, 0]) == sorted(10 * y)
    held_out = load("validation").sample(2)
    assert sorted([*y, *held_out.y]) == list(range(1, 16))
    test = load("test").sample(5)  # the official validation split
    np.testing.assert_array_equal(test.x[:, 0, 0, 0], 10 * (999 - test.y))
    assert sorted(test.y) == list(range(979, 984))
    assert "tensorflow" not in sys.modules


def test_a_broken_record_is_named(imagenet):
    dataset = streamed.load("imagenet2012", "test", dir=imagenet, side=SIDE)
    read = lambda row: (io.BytesIO(b"broken"), 0, dataset.read(row)[2])
    broken = streamed.Stream(read, dataset.rows, 1000, SIDE)
    with pytest.raises(ValueError, match=r"^Record \d of imagenet2012, validation cannot be read"):
        broken.sample(1)


def test_a_set_that_is_not_prepared_or_not_known_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=f"food101 is not prepared as array_record in {tmp_path}"):
        streamed.load("food101", "train")
    with pytest.raises(ValueError, match=r"No data set 'nope'; .* or folder for DIR/train"):
        streamed.load("nope", "train")


@pytest.mark.parametrize(
    ("dtype", "label", "told"),
    [
        (np.float32, {"num_classes": 10}, "images of float32"),
        (np.uint8, {}, "labels as SimpleNamespace"),
    ],
)
def test_a_set_of_other_things_than_pixels_and_classes_is_refused(dtype, label, told, monkeypatch):
    features = {"image": SimpleNamespace(np_dtype=dtype), "label": SimpleNamespace(**label)}
    builder = SimpleNamespace(info=SimpleNamespace(features=features, splits={}))
    monkeypatch.setattr(streamed.prepared, "builder", lambda *_: builder)
    with pytest.raises(ValueError, match=f"^odd has .*{told}"):
        streamed.load("odd", "train")


def test_importing_the_module_imports_no_data_library():
    heavy = {"grain", "tensorflow_datasets", "sklearn"}
    code = f"import sys, lipreg.datasets.streamed; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
