"""From a reference database to a published place index."""
