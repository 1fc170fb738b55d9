"""`alexnet export`: a release for programs that have no Keras."""
