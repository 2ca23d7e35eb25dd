"""The localizer of a server process: loading, batching, swapping, health probes."""
