"""Photos to train on: decoded once into a store on disk, and some of them held out for validation."""
