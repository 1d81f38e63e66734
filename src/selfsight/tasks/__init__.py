"""Classification, object detection and segmentation on a pretrained backbone."""
