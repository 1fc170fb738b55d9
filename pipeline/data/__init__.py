"""Data: any images in, a split and prepared dataset out."""
