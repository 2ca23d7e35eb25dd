"""The commands of the `sightfix` command line, one module each."""
