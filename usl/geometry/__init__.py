"""Points, neighbours and clusters: tensors in, tensors out."""
