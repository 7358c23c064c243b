"""Settings from YAML files and the command line, and where files are looked for."""
