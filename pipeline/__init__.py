"""Image classification from a folder of pictures to a judged, tracked model, starting from AlexNet."""
