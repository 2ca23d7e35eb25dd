"""The gRPC interface `sightfix.v1`: the same answers as over HTTP, from the same queue."""
