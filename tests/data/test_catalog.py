import numpy as np
import pytest
import tensorflow_datasets as tfds

from pipeline.config.data import DataConfig
from pipeline.data.catalog import assign_tfds_splits
from pipeline.data.loader import load_split
from pipeline.errors import DatasetError

BEAM = "--runner=DirectRunner"


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Forty small images, with a validation and without a test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(20, 24, 3)),
            "label": tfds.features.ClassLabel(names=["dark", "light"]),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(40, 0),
            "validation": self._generate_examples(10, 1),
        }

    def _generate_examples(self, count, seed):
        rng = np.random.default_rng(seed)
        for index in range(count):
            yield (
                index,
                {
                    "image": rng.integers(0, 256, (20, 24, 3), dtype=np.uint8),
                    "label": index % 2,
                },
            )


class BeamShapes(TinyShapes):
    """The same, made by Apache Beam."""

    def _generate_examples(self, count, seed):
        import apache_beam

        return apache_beam.Create(list(super()._generate_examples(count, seed)))


class NoImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"number": np.int64})
        )

    def _split_generators(self, dl_manager):
        return {"train": [(0, {"number": 0})]}

    def _generate_examples(self):
        return iter(())  # abstract in TFDS; the split above holds its examples itself


def test_tfds_set_whose_validation_is_the_test(make_dataset, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shared"))
    dataset = make_dataset(dataset="tiny_shapes", validation_fraction=0.25)
    assert dataset.reads == {
        "train": "train[:30]",
        "validation": "train[30:]",
        "test": "validation",
    }
    assert {split: dataset.count_images(split) for split in dataset.reads} == {
        "train": 30,
        "validation": 10,
        "test": 10,
    }
    assert dataset.class_names == ("dark", "light")
    assert dataset.builder_directory == tmp_path / "shared" / "tiny_shapes" / "1.0.0"
    assert load_split(dataset, "test").pixels.shape == (10, 36, 36, 3)
    assert capfd.readouterr().out == ""
    again = make_dataset(dataset="tiny_shapes", validation_fraction=0.25)
    assert again.identity() == dataset.identity()


def test_tfds_sets_land_in_the_work_directory(make_dataset, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    dataset = make_dataset(dataset="tiny_shapes:1.0.0")
    assert (
        dataset.builder_directory
        == dataset.directory.parents[1] / "datasets" / "tiny_shapes" / "1.0.0"
    )


def test_a_set_in_another_file_format_is_refused(make_dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    TinyShapes(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(DatasetError, match=r"is kept as array_record. Expected TFRecord"):
        make_dataset(dataset="tiny_shapes")


def test_unusable_tfds_sets_are_refused(make_dataset):
    with pytest.raises(DatasetError, match=r"Did you mean `cifar10`"):
        make_dataset(dataset="cifar1")
    with pytest.raises(DatasetError, match=r"not a dataset of images .* Received number"):
        make_dataset(dataset="no_images")
    with pytest.raises(
        DatasetError,
        match=(
            r"could not prepare `imagenet2012` .*ILSVRC2012_img_train.tar.* into"
            r" .*/datasets/downloads/manual"
        ),
    ):
        make_dataset(dataset="imagenet2012")
    with pytest.raises(
        DatasetError, match=r"could not prepare `imagenette/nope`.*BuilderConfig nope not found"
    ):
        make_dataset(dataset="imagenette/nope")


@pytest.mark.parametrize(
    ("sizes", "reads"),
    [
        ({"train": 100, "validation": 9, "test": 9}, ("train", "validation", "test")),
        ({"train": 101, "test": 9}, ("train[:91]", "train[91:]", "test")),
        (
            {"train": 1_281_167, "validation": 50_000},
            ("train[:1153050]", "train[1153050:]", "validation"),
        ),
        ({"train": 100}, ("train[:72]", "train[72:80]", "train[80:]")),
    ],
)
def test_missing_tfds_splits_are_cut_in_whole_images(sizes, reads):
    assert tuple(assign_tfds_splits(DataConfig(), sizes).values()) == reads


@pytest.mark.slow
def test_beam_makes_the_sets_of_tfds_that_need_it(make_dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shared"))
    made = make_dataset(dataset="beam_shapes", beam=BEAM)
    assert {split: made.count_images(split) for split in made.reads} == {
        "train": 36,
        "validation": 4,
        "test": 10,
    }
