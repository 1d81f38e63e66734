"""Images in: folders, arrays, tables and other libraries' data sets, decoded once, as batches on the device."""

from selfsight.data.cache import write_skipped
from selfsight.data.images import Batch, ImageSet, Pixels, Skipped
from selfsight.data.labels import few_labels, stratified_split
from selfsight.data.loader import Loader, in_order
from selfsight.data.sources import open_images

__all__ = [
    "Batch",
    "ImageSet",
    "Loader",
    "Pixels",
    "Skipped",
    "few_labels",
    "in_order",
    "open_images",
    "stratified_split",
    "write_skipped",
]
