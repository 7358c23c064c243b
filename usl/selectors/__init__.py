"""Rules that choose images: tensors in, indices out."""
