"""How fast the server is under load, beside the bare libraries and a peer."""
