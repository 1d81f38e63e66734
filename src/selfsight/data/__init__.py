"""Images in: folders, arrays, tables and other libraries' data sets, decoded once, as batches on the device."""

from selfsight.data.annotations import Problem, write_problems
from selfsight.data.boxes import BoxSet, open_boxes, write_coco
from selfsight.data.cache import write_skipped
from selfsight.data.images import Batch, ImageSet, Pixels, Skipped
from selfsight.data.labels import few_images, few_labels, stratified_split, whole_groups
from selfsight.data.loader import Loader, in_order
from selfsight.data.mask_files import MaskSet, open_masks
from selfsight.data.sources import open_images

__all__ = [
    "Batch",
    "BoxSet",
    "ImageSet",
    "Loader",
    "MaskSet",
    "Pixels",
    "Problem",
    "Skipped",
    "few_images",
    "few_labels",
    "in_order",
    "open_boxes",
    "open_images",
    "open_masks",
    "stratified_split",
    "whole_groups",
    "write_coco",
    "write_problems",
    "write_skipped",
]
