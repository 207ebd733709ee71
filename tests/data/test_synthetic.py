"""Random images stand in for a data set's shape, and nothing more."""

from __future__ import annotations

import pytest
import torch

from advcli.data.synthetic import SHAPES, can_stand_in, planned_images, shape_of, synthetic
from advcli.errors import DataError, UsageError
from advcli.recipe.schema import DATA_SETS, Data


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_images_have_the_data_sets_shape(name: str) -> None:
    made = synthetic(Data(name=name, validation=0), 400)
    shape = shape_of(Data(name=name))
    assert made.train.images.shape == (400, shape.channels, shape.side, shape.side)
    assert made.train.images.dtype == torch.uint8
    assert made.train.images.float().mean() == pytest.approx(127.5, abs=2)
    assert torch.equal(made.train.labels.bincount(), torch.full((shape.classes,), 400 // shape.classes))
    assert len(made.classes) == shape.classes
    assert len(made.validation) == 0


def test_every_published_data_set_has_a_shape() -> None:
    assert set(SHAPES) == set(DATA_SETS) - {"folder"}


def test_the_digits_are_as_many_as_they_are() -> None:
    from advcli.data import load

    data = Data(name="digits", validation=100)
    real = load(data, 0)
    assert len(real.train) == planned_images(data)
    assert real.train.images.shape[1:] == synthetic(data, 10).train.images.shape[1:]


def test_limit_and_validation_are_taken_off() -> None:
    assert planned_images(Data(name="cifar10")) == 49_000
    assert planned_images(Data(name="cifar10", limit=2000, validation=500)) == 1500
    assert planned_images(Data(name="cifar10", limit=90_000, validation=0)) == 50_000


def test_validation_that_leaves_nothing_is_refused_in_the_words_of_the_real_data() -> None:
    from advcli.data import load

    data = Data(name="digits", limit=1200, validation=1200)
    said: list[str] = []
    for refuse in (lambda: load(data, 0), lambda: planned_images(data)):
        with pytest.raises(DataError) as error:
            refuse()
        said.append(str(error.value))
    assert said[0] == said[1]
    assert not can_stand_in(data)
    assert can_stand_in(Data(name="digits", limit=1200, validation=1199))
    assert not can_stand_in(Data(name="folder", root="x"))


def test_a_folder_has_no_known_shape() -> None:
    with pytest.raises(UsageError, match="no known shape"):
        synthetic(Data(name="folder", root="x"), 10)
