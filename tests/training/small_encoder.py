"""Recipes and encoders small enough to build and save in milliseconds."""

from training.encoder import Encoder, build_encoder
from training.recipe import load_recipe
from training.recipe_settings import Recipe

SMALL_NETWORK = [
    "network.backbone=test_resnet.r160_in1k",
    "network.pretrained=none",
    "network.descriptor_dim=16",
    "image.height=64",
    "image.width=96",
]


def small_recipe(*overrides: str) -> Recipe:
    """SimCLR on timm's smallest ResNet, (N, 3, 64, 96) → (N, 16)."""
    return load_recipe("simclr-efficientnet-lite0", [*SMALL_NETWORK, *overrides])


def small_encoder(recipe: Recipe) -> Encoder:
    """The recipe's encoder with random weights, in evaluation mode."""
    encoder = build_encoder(recipe.network, recipe.image)
    encoder.net.eval()
    return encoder
