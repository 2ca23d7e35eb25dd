"""From weights to a bundle that every runtime can trust."""
