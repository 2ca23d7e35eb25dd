"""Ground floor: what it means to localize an image (images, bundle, descriptors, place index, fix)."""
