"""One training loop; each method brings its step and its losses."""
