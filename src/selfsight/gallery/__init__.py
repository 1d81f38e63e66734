"""The gallery: a page on which few labels become a classifier."""
