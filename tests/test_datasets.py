"""Splits are partitions, augmentation is each image's own, batches are rows and nothing else."""

import io
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lipreg import batching, datasets

KEY = jax.random.key(0)
PREPARED = os.environ.get("TFDS_DATA_DIR", "")


def rows(dataset):
    """Each image with its class, as something that can be compared and sorted."""
    return sorted((x.tobytes(), int(y)) for x, y in zip(dataset.x, dataset.y, strict=True))


def three(name, **options):
    return [datasets.load(name, split, **options) for split in ("train", "validation", "test")]


# Splits


def test_digits_are_uint8_images_over_the_whole_range_with_int32_classes():
    training, validation, test = three("digits")
    assert [len(d.y) for d in (training, validation, test)] == [1293, 144, 360]
    for d in (training, validation, test):
        assert d.x.shape == (len(d.y), 8, 8, 1)
        assert (d.x.dtype, d.y.dtype, d.classes) == (np.uint8, np.int32, 10)
        assert (d.x.min(), d.x.max()) == (0, 255)
        assert set(d.y) == set(range(10))


def test_digits_splits_are_disjoint_and_cover_the_file_pixel_by_pixel():
    from sklearn.datasets import load_digits

    grey = lambda d: np.round(d.x[..., 0] * (16 / 255))  # 0 ... 16, as in the file
    parts = three("digits", seed=3, validation=0.25)
    found = [d._replace(x=grey(d)) for d in parts]
    whole = datasets.Dataset(*load_digits(return_X_y=True), 10)
    assert sorted(pair for d in found for pair in rows(d)) == rows(whole)


def test_the_seed_moves_the_partition_of_the_training_split_and_not_the_test_split():
    first, again, other = (three("digits", seed=s) for s in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)
    assert rows(first[1]) != rows(other[1])
    np.testing.assert_array_equal(first[2].x, other[2].x)
    assert sorted(rows(first[0]) + rows(first[1])) == sorted(rows(other[0]) + rows(other[1]))


def test_the_partition_of_digits_is_the_same_on_every_machine():
    # Golden: a change moves every result on digits. From datasets.load("digits", split).y[:8].
    firsts = [d.y[:8].tolist() for d in three("digits")]
    assert firsts == [
        [7, 5, 9, 8, 4, 8, 5, 2],
        [5, 8, 5, 8, 6, 9, 2, 7],
        [6, 6, 6, 2, 5, 6, 6, 2],
    ]


@pytest.mark.parametrize(("validation", "held_out"), [(1e-9, 1), (0.5, 718), (1 - 1e-9, 1436)])
def test_any_fraction_leaves_both_parts_an_image(validation, held_out):
    training, held, _ = three("digits", validation=validation)
    assert (len(training.y), len(held.y)) == (1437 - held_out, held_out)


def test_wrong_labels_are_so_many_and_each_other_class_is_as_likely():
    digits = datasets.load("digits", "train")
    dataset = datasets.Dataset(digits.x[:1000], np.full(1000, 3, np.int32), 4)
    wrong = datasets.wrong_labels(dataset, 0.6, seed=1)
    assert wrong.y.dtype == dataset.y.dtype
    assert ((wrong.y >= 0) & (wrong.y < 4)).all()
    counts = np.bincount(wrong.y, minlength=4)
    assert counts[3] == 400
    assert counts[:3].min() > 150
    assert (datasets.wrong_labels(dataset, 0.6, seed=1).y == wrong.y).all()
    assert (datasets.wrong_labels(dataset, 0.6, seed=2).y != wrong.y).any()
    assert (dataset.y == 3).all()
    with pytest.raises(ValueError, match=r"fraction = 1\.5; of the labels"):
        datasets.wrong_labels(dataset, 1.5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("foo", "train"),
            {},
            r"^No data set 'foo'; choose one of cifar10, cifar100, digits, mnist, name another of",
        ),
        (
            ("digits", "valid"),
            {},
            r"^No split 'valid'; choose one of train, validation, test\.$",
        ),
        *(
            (("digits", "train"), {"validation": v}, f"^validation = {v}; .* 0 and less than 1")
            for v in (0.0, 1.0, -0.1, 1.5, float("nan"))
        ),
    ],
)
def test_a_wrong_argument_is_named_with_the_choices(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(*arguments, **options)


# Prepared folders


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def prepare(name, folder, splits):
    """What TFDS's own builder of a set writes of these examples."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    builder._split_generators = lambda *_, **__: {
        split: enumerate(examples) for split, examples in splits.items()
    }
    builder.download_and_prepare(file_format="array_record")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with a small cifar100 that TFDS's own builder wrote, and what was put into it."""
    folder = tmp_path_factory.mktemp("tfds")
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (50, 32, 32, 3), np.uint8)
    y = random.permutation(100)[:50].astype(np.int32)

    # Bytes: TFDS would encode an array with TensorFlow.
    examples = [
        {"image": png(x[i]), "label": int(y[i]), "coarse_label": 0, "id": str(i)} for i in range(50)
    ]
    prepare("cifar100", folder, {"train": examples[:30], "test": examples[30:]})
    return folder, datasets.Dataset(x[:30], y[:30], 100), datasets.Dataset(x[30:], y[30:], 100)


def test_a_prepared_folder_is_read_exactly_and_without_tensorflow(stand_in):
    folder, official_train, official_test = stand_in
    training, validation, test = three("cifar100", dir=str(folder), validation=0.2)
    assert [len(d.y) for d in (training, validation, test)] == [24, 6, 20]
    assert rows(test) == rows(official_test)
    assert sorted(rows(training) + rows(validation)) == rows(official_train)
    for d in (training, validation, test):
        assert d.x.shape[1:] == (32, 32, 3)
        assert (d.x.dtype, d.y.dtype, d.classes) == (np.uint8, np.int32, 100)
    assert "tensorflow" not in sys.modules


def test_any_set_of_images_of_one_size_is_read_and_one_of_many_sizes_is_told_how(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    examples = [{"image": png(image[..., 0]), "label": i} for i, image in enumerate(x)]
    prepare("fashion_mnist", tmp_path, {"train": examples[:3], "test": examples[3:]})
    training, validation, test = three("fashion_mnist", dir=tmp_path)
    assert rows(test) == rows(datasets.Dataset(x[3:], np.arange(3, 5, dtype=np.int32), 10))
    assert (len(training.y), len(validation.y), training.classes) == (2, 1, 10)
    assert training.names[:2] == test.names[:2] == ("T-shirt/top", "Trouser")
    colours = [{"image": png(x[0].repeat(3, -1)), "label": 7}]
    prepare("food101", tmp_path, {"train": colours, "validation": colours})
    message = r"^food101 has images of uint8\[None, None, 3\].*config\.data\.side, in pixels"
    with pytest.raises(ValueError, match=message):
        datasets.load("food101", "train", dir=tmp_path)


def test_the_folder_comes_from_the_environment_where_no_argument_names_it(stand_in, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(stand_in[0]))
    assert rows(datasets.load("cifar100", "test")) == rows(stand_in[2])
    with pytest.raises(ValueError, match="not prepared"):
        datasets.load("cifar100", "test", dir=stand_in[0] / "none")


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_the_data_set_gets_the_command_that_prepares_it(tmp_path, exists, capfd):
    folder = tmp_path if exists else tmp_path / "none"
    with pytest.raises(ValueError) as caught:
        datasets.load("mnist", "train", dir=str(folder))
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"mnist is not prepared as array_record in {folder}",
        f'tfds.builder("mnist", data_dir="{folder}").download_and_prepare('
        'file_format="array_record")',
        *("network", "TensorFlow", "TFDS_DATA_DIR", "config.data.dir", "digits"),
    ):
        assert part in message
    assert capfd.readouterr().err == ""


def test_a_folder_prepared_in_another_format_is_told_from_an_empty_one(stand_in, tmp_path):
    shutil.copytree(stand_in[0], tmp_path, dirs_exist_ok=True)
    (info,) = tmp_path.glob("cifar100/*/dataset_info.json")
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match=r"it is there as tfrecord: prepare it in another folder"):
        datasets.load("cifar100", "train", dir=str(tmp_path))


def need(name):
    if not (PREPARED and (Path(PREPARED) / name).is_dir()):
        pytest.skip(f"TFDS_DATA_DIR names no folder with a prepared {name}.")


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("mnist", (28, 28, 1), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        ("cifar10", (32, 32, 3), [1000] * 10),
    ],
)
def test_a_prepared_data_set_has_its_official_test_split(name, shape, counts):
    need(name)
    test = datasets.load(name, "test", dir=PREPARED)  # training splits take 8 s and more to decode
    assert (test.x.shape, test.x.dtype, test.classes) == ((10_000, *shape), np.uint8, 10)
    assert np.bincount(test.y).tolist() == counts
    assert (test.x.min(), test.x.max()) == (0, 255)


def test_importing_the_module_imports_no_data_library():
    heavy = {"tensorflow", "tensorflow_datasets", "sklearn"}
    code = f"import sys, lipreg.datasets; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# An outsider's arrays


def four(x, y, n=20):
    return {"x_train": x[n:], "y_train": y[n:], "x_test": x[:n], "y_test": y[:n]}


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 4, 5, 3), np.uint8)
CLASSES = np.arange(60) % 3
ARRAYS = four(PIXELS, CLASSES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, where `write` puts a file of arrays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path


def write(arrays, **changes):
    kept = {name: a for name, a in (arrays | changes).items() if a is not None}
    np.savez("mine.npz", **kept)
    return "mine.npz"


def test_a_file_of_arrays_is_split_like_any_set(folder):
    training, validation, test = three(write(ARRAYS), validation=0.25)
    assert [len(d.y) for d in (training, validation, test)] == [30, 10, 20]
    assert rows(test) == rows(datasets.Dataset(PIXELS[:20], CLASSES[:20], 3))
    both = sorted(rows(training) + rows(validation))
    assert both == rows(datasets.Dataset(PIXELS[20:], CLASSES[20:], 3))
    for d in (training, validation, test):
        assert (d.x.dtype, d.y.dtype, d.classes) == (np.uint8, np.int32, 3)
    os.makedirs("elsewhere")
    os.chdir("elsewhere")
    assert rows(datasets.load("mine.npz", "test", dir=folder)) == rows(test)


def test_a_file_may_say_what_its_classes_are_called(folder):
    found = datasets.load(write(ARRAYS, names=np.array(["cat", "dog", "frog", "newt"])), "train")
    assert (found.names, found.classes) == (("cat", "dog", "frog", "newt"), 4)
    with pytest.raises(ValueError, match=r"mine\.npz has 2 names for 3 classes\."):
        datasets.load(write(ARRAYS, names=np.array(["cat", "dog"])), "train")


def test_a_file_that_was_written_again_is_read_again(folder):
    first = datasets.load(write(ARRAYS), "test")
    write(four(255 - PIXELS, CLASSES))
    os.utime("mine.npz", ns=(0, 0))
    np.testing.assert_array_equal(datasets.load("mine.npz", "test").x, 255 - first.x)


@pytest.mark.parametrize(
    ("x", "bounds", "shape", "dtype"),
    [
        (PIXELS[..., 0], (0, 1), (4, 5, 1), np.uint8),
        (PIXELS / 255, (0.0, 1.0), (4, 5, 3), np.float32),
        (RNG.normal(size=(60, 7)), (-6.0, 6.0), (7,), np.float32),
        (np.full((60, 2), 0.1), (-0.1, 0.1), (2,), np.float32),  # beyond 0.1 as float32
        (PIXELS.reshape(60, -1), (0.0, 1.0), (60,), np.uint8),
    ],
)
def test_grey_images_floats_and_features_are_data(x, bounds, shape, dtype, folder):
    found = datasets.load(write(four(x, CLASSES)), "test", bounds=bounds)
    assert found.x.shape == (20, *shape)
    assert found.x.dtype == dtype
    np.testing.assert_allclose(found.x.ravel(), x[:20].ravel(), rtol=1e-6)
    same = datasets.augment(KEY, jnp.asarray(found.x), flip=False, pad=0)
    np.testing.assert_array_equal(same, found.x)


def test_a_function_returns_arrays_once_and_keeps_its_own(folder):
    (folder / "data_of_mine.py").write_text(
        "import numpy as np\ncalls = []\nx = np.full((9, 2), 0.5)\ny = np.arange(9) % 2\n"
        "def both():\n    calls.append(1)\n    return x, y, x, y\n"
        "def named():\n    return dict(x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])\n"
        "number = 3\ndef nothing(): return None\ndef asks(x): return x\n"
    )
    found = three("data_of_mine:both")
    assert [len(d.y) for d in found] == [8, 1, 9]
    mine = sys.modules["data_of_mine"]
    assert mine.calls == [1]
    assert mine.x.flags.writeable
    assert len(datasets.load("data_of_mine:named", "test").y) == 4
    for name, message in (
        ("number", "data_of_mine:number is no function without arguments"),
        ("asks", "data_of_mine:asks is no function without arguments"),
        ("nothing", "returns NoneType; it must return x_train, y_train, x_test, y_test, as a"),
        ("missing", "No data set 'data_of_mine:missing'"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.load(f"data_of_mine:{name}", "test")


@pytest.mark.parametrize(
    ("changes", "bounds", "message"),
    [
        ({"y_test": None}, (0, 1), "mine.npz has no y_test; it must have x_train, y_train, x_test"),
        ({"y_test": CLASSES[:19]}, (0, 1), "has 20 x_test and 19 y_test; it must have one class"),
        ({"x_train": PIXELS[:0], "y_train": CLASSES[:0]}, (0, 1), "has 0 x_train and 0 y_train"),
        ({"x_train": PIXELS[20:, :3]}, (0, 1), r"x_train uint8\[40, 3, 5, 3\] and x_test uint8"),
        ({"x_train": PIXELS[20:].astype(int)}, (0, 1), "x_train is int64; it must be uint8, 0"),
        ({"x_train": PIXELS[20:, 0, 0, 0]}, (0, 1), r"x_train has shape \(40,\); it must be"),
        ({"x_test": PIXELS[:20] / 200}, (0, 1), r"x_test has values from 0 to 1.275, and"),
        ({"x_test": np.full((20, 3), np.nan)}, (0, 1), "x_test has values that are not finite"),
        ({"y_train": CLASSES[20:] - 1}, (0, 1), "y_train has classes from -1 to 1; they must be 0"),
        ({"y_train": CLASSES[20:] / 2}, (0, 1), r"y_train is float64\[40\]; it must be integers"),
        ({"y_test": np.array([{}] * 20)}, (0, 1), "mine.npz cannot be read: Object arrays"),
        ({}, (0, 2), r"x_train is uint8, .* and bounds = \(0, 2\)"),
        ({}, (1, 0), r"bounds = \(1, 0\); they must be two finite numbers, the lower first"),
        ({}, (0, np.inf), r"bounds = \(0, inf\); they must be two finite numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_arrays_is_told_in_one_line(changes, bounds, message, folder):
    with pytest.raises(ValueError, match=message) as raised:
        datasets.load(write(ARRAYS, **changes), "train", bounds=bounds)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_and_bounds_of_pixels_are_refused(folder):
    with pytest.raises(ValueError, match=f"No data set 'none.npz': .* no file {folder}/none.npz"):
        datasets.load("none.npz", "train")
    with pytest.raises(ValueError, match=r"bounds = \(0, 2\); the images of digits are within"):
        datasets.load("digits", "train", bounds=(0, 2))


# Pixels


def test_to_unit_is_a_255th_and_the_same_inside_and_outside_jit():
    x = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    unit = datasets.to_unit(x)
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, x / 255, rtol=2e-7)
    assert (unit.min(), unit.max()) == (0, 1)
    np.testing.assert_array_equal(unit, jax.jit(datasets.to_unit)(x))


def test_to_unit_leaves_floats_alone_and_refuses_other_integers():
    x = jnp.array([0.25, 1.0])
    assert datasets.to_unit(x) is x
    with pytest.raises(ValueError, match="int32"):
        datasets.to_unit(np.arange(3, dtype=np.int32))


# Augmentation. Pixels are distinct and not 0, height is not width.
B, H, W, C = 400, 6, 7, 2
IMAGE = np.arange(1, H * W * C + 1, dtype=np.uint8).reshape(H, W, C)
IMAGES = np.broadcast_to(IMAGE, (B, H, W, C))
augment = jax.jit(datasets.augment, static_argnames=("flip", "pad", "cutout"))


def test_augment_with_all_off_returns_its_argument():
    assert datasets.augment(KEY, IMAGES, flip=False, pad=0, cutout=0) is IMAGES


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs():
    pad = 2
    padded = np.pad(IMAGE, ((pad, pad), (pad, pad), (0, 0)))
    windows = {
        padded[i : i + H, j : j + W].tobytes()
        for i in range(2 * pad + 1)
        for j in range(2 * pad + 1)
    }
    crops = {x.tobytes() for x in np.asarray(augment(KEY, IMAGES, flip=False, pad=pad))}
    assert crops == windows


def test_a_flip_mirrors_columns_of_half_of_the_images():
    out = np.asarray(augment(KEY, IMAGES, pad=0))
    same = (out == IMAGE).all((1, 2, 3))
    mirrored = (out == IMAGE[:, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.1  # four standard deviations of 400 coins


def test_cutout_blanks_one_square_that_the_border_may_clip():
    size, side = 12, 4
    x = jnp.ones((B, size, size, 3))
    zero = np.asarray(augment(KEY, x, flip=False, pad=0, cutout=side)) == 0
    assert (zero == zero[..., :1]).all()
    across, down = zero[..., 0].any(1), zero[..., 0].any(2)
    np.testing.assert_array_equal(zero[..., 0], down[:, :, None] & across[:, None, :])
    for line in (across, down):
        assert (np.abs(np.diff(line.astype(int))).sum(1) <= 2).all()  # one stretch
        assert set(line.sum(1)) == {2, 3, 4}
        assert (line.any(0)).all()  # every pixel is met
    # Over the 12 centres a side keeps 2, 3, 4 (nine times), 3 pixels: 44/12 on average.
    assert abs(zero[..., 0].sum((1, 2)).mean() - (44 / 12) ** 2) < 0.7


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augment_is_a_function_of_its_key_and_keeps_shape_and_dtype(dtype):
    f = partial(augment, x=IMAGES[:32].astype(dtype), cutout=3)
    out = f(KEY)
    assert (out.shape, out.dtype) == ((32, H, W, C), dtype)
    np.testing.assert_array_equal(out, f(KEY))
    assert (out != f(jax.random.key(1))).any()


def test_augment_is_the_same_inside_and_outside_jit():
    options = {"flip": False, "pad": 2}  # op by op, each part takes seconds to compile
    np.testing.assert_array_equal(
        augment(KEY, IMAGES, **options), datasets.augment(KEY, IMAGES, **options)
    )


def test_an_images_augmentation_does_not_depend_on_its_batch_mates():
    f, x = partial(augment, KEY, cutout=3), IMAGES[:32]
    np.testing.assert_array_equal(f(x)[:5], f(x[:5]))
    others = np.where(np.arange(32)[:, None, None, None] == 3, x, np.uint8(9))
    np.testing.assert_array_equal(f(others)[3], f(x)[3])


def test_padding_and_cutout_stay_in_a_box_without_0():
    x = jnp.full((8, 6, 6, 1), 2.0)
    y = np.asarray(augment(KEY, x, pad=2, cutout=3, fill=1.0))
    assert set(np.unique(y)) == {1.0, 2.0}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 4, 4, 1), {"pad": -1}, "pad = -1"),
        ((2, 4, 4, 1), {"cutout": -2}, "cutout = -2"),
        ((4, 4, 1), {}, r"\(4, 4, 1\)"),
    ],
)
def test_augment_names_what_it_cannot_use(shape, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.augment(KEY, jnp.zeros(shape), **options)


# Batches


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (12, 4), (5, 5), (7, 1)])
def test_an_epoch_is_a_permutation_cut_to_full_batches(n, batch_size):
    batches = batching.epoch_batches(KEY, n, batch_size)
    assert batches.shape == (n // batch_size, batch_size)
    assert batches.dtype == np.int32
    assert len(set(batches.ravel())) == batches.size
    assert set(batches.ravel()) <= set(range(n))
    np.testing.assert_array_equal(batches, batching.epoch_batches(KEY, n, batch_size))


def test_another_key_is_another_order():
    a, b = (batching.epoch_batches(jax.random.key(i), 100, 10) for i in (0, 1))
    assert (a != b).any()


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_the_data_cannot_fill_is_an_error(batch_size):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}; .* 10 examples"):
        batching.epoch_batches(KEY, 10, batch_size)


@pytest.mark.parametrize("n", [1, 4, 8, 10])
@pytest.mark.parametrize("module", [np, jnp])
def test_map_batches_is_the_function_itself_and_traces_it_once(n, module):
    shapes = []

    @jax.jit
    def f(x, y):
        shapes.append(x.shape)
        return {"sum": x.sum(1) + y.astype(x.dtype), "pair": (x, y)}

    x, y = module.arange(3.0 * n).reshape(n, 3).astype(np.float32), module.arange(n)
    out = batching.map_batches(f, 4, x, y)
    assert shapes == [(4, 3)]
    jax.tree.map(np.testing.assert_array_equal, out, jax.device_get(f(x, y)))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(out))


def test_map_batches_takes_keys_and_shows_its_progress():
    seen = []

    def progress(batches):
        seen.append(len(batches))
        return batches

    keys = jax.random.split(KEY, 5)
    draw = jax.vmap(jax.random.uniform)
    out = batching.map_batches(draw, 2, keys, progress=progress)
    np.testing.assert_array_equal(out, draw(keys))
    assert seen == [3]


@pytest.mark.parametrize(
    ("f", "batch_size", "lengths", "message"),
    [
        (lambda x: x, 2, (0,), r"\[0\] rows"),
        (lambda x, y: x, 2, (3, 4), r"\[3, 4\] rows"),
        (lambda x: x, 0, (3,), "batch_size = 0"),
        (lambda x: x.sum(), 2, (3,), r"returned \(\); it must return 2 rows"),
    ],
)
def test_map_batches_names_what_does_not_fit(f, batch_size, lengths, message):
    with pytest.raises(ValueError, match=message):
        batching.map_batches(f, batch_size, *(np.ones(n) for n in lengths))
