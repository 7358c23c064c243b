"""Lists of images: read with their labels, written for other tools."""
