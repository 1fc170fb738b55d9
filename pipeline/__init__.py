"""Image classification: from a folder of images to an evaluated, tracked model; AlexNet first."""
