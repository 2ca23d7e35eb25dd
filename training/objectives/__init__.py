"""The seven training objectives, one file each: pairs of descriptors in, a loss out."""
