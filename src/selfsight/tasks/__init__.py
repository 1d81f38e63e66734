"""Object detection and segmentation on a pretrained backbone."""
