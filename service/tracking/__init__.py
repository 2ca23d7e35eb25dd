"""Tracks of moving cameras: opened by a gRPC stream or over HTTP, stepped with each frame."""
