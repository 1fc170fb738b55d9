"""Data: any pictures in, a split and prepared dataset out."""
