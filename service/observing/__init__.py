"""What an operator sees of a running server: metrics, traces, and one log line a request."""
