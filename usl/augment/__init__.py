"""Random views of images, in batches on the device."""
