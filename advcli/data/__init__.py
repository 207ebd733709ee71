"""Data sets as uint8 images, batches of them, and augmentation."""

from advcli.data.batches import Batch, Moment, batches, epoch_order, to_float
from advcli.data.datasets import DataSet, Split, load, load_test
from advcli.data.split import stratified_order

__all__ = ["Batch", "DataSet", "Moment", "Split", "batches", "epoch_order", "load", "load_test", "stratified_order", "to_float"]
