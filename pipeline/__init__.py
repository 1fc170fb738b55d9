"""Image classification from a folder of images to a judged, tracked model, starting from AlexNet."""
