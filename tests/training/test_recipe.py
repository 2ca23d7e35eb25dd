from pathlib import Path

import pytest

from tests.retrieval.refusal import refused
from training.recipe import RecipeError, list_recipes, load_recipe
from training.recipe_settings import Recipe

NETWORK_KEYS = (
    "backbone, truncate_after, aggregation, layers, centroids, sharpness, pooling, descriptor_dim, l2_before_pool, "
    "gem_p, pretrained, drop_classifier"
)
MINIMAL = """
name = "mine"
[network]
backbone = "resnet18"
[image]
height = 64
width = 96
[objective]
name = "simclr"
[training]
pairs = 8
epochs = 2
[optimiser]
learning_rate = 1e-4
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(MINIMAL)
    return tmp_path / "mine.toml"


def edited(path: Path, old: str, new: str) -> Path:
    path.write_text(path.read_text().replace(old, new))
    return path


def test_what_a_recipe_leaves_out_has_a_default(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe == load_recipe(str(path))
    assert (recipe.geopair.positive_radius_m, recipe.geopair.never_negative_radius_m) == (10.0, 25.0)
    assert (recipe.training.precision, recipe.schedule.name, recipe.network.descriptor_dim) == (
        "fp32",
        "constant",
        None,
    )


def test_a_recipe_survives_json() -> None:
    for name in list_recipes():
        recipe = load_recipe(name)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert recipe.objective.settings == Recipe.model_validate_json(recipe.model_dump_json()).objective.settings


def test_recipes_cannot_be_changed(path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(path).training.pairs = 3


def test_overrides_are_typed(path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "training.pairs=32",
            "optimiser.learning_rate = 3e-4",
            "network.descriptor_dim=512",
            "network.pretrained=weights/mine.pth",
            "network.backbone=resnet50.tv_in1k",
            "augmentation.flip=true",
            "geopair.heading_window_deg=45",
            "objective.temperature=0.2",
            'image.fit="crop"',
        ],
    )
    assert (recipe.training.pairs, recipe.optimiser.learning_rate) == (32, 3e-4)
    assert (recipe.network.descriptor_dim, recipe.network.pretrained) == (512, "weights/mine.pth")
    assert recipe.network.backbone == "resnet50.tv_in1k"
    assert recipe.augmentation.flip is True
    assert recipe.geopair.heading_window_deg == 45.0
    assert recipe.objective.settings == {"temperature": 0.2}
    assert recipe.image.fit == "crop"


def test_none_takes_away_what_may_be_missing_and_is_a_word_elsewhere() -> None:
    recipe = load_recipe("simclr-resnet50", ["network.descriptor_dim=none", "network.pretrained=none"])
    assert recipe.network.descriptor_dim is None
    assert recipe.network.pretrained == "none"


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    text = (
        "there is no recipe 'simclr-resnet'. Did you mean simclr-resnet50? "
        f"Choose a .toml file or one of {', '.join(list_recipes())}."
    )
    with refused(RecipeError, text, "unknown_recipe"):
        load_recipe("simclr-resnet")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    text = f"{tmp_path / 'gone.toml'}: the recipe cannot be read (No such file or directory)."
    with refused(RecipeError, text, "recipe"):
        load_recipe(tmp_path / "gone.toml")


def test_a_syntax_error_names_the_line(path: Path) -> None:
    edited(path, 'backbone = "resnet18"', "backbone = resnet18")
    text = (
        f"{path}: this is not valid TOML: Invalid value (at line 4, column 12). "
        "Correct that line; texts stand in quotes."
    )
    with refused(RecipeError, text, "recipe"):
        load_recipe(path)


def test_an_unknown_key_lists_the_valid_ones(path: Path) -> None:
    edited(path, "[image]", 'poling = "gem"\n[image]')
    text = (
        f"{path}: unknown key network.poling. Did you mean network.pooling? The keys of [network] are {NETWORK_KEYS}."
    )
    with refused(RecipeError, text, "recipe"):
        load_recipe(path)


def test_an_unknown_table_lists_all_keys(path: Path) -> None:
    edited(path, "[training]", "[trainings]\n[training]")
    with pytest.raises(
        RecipeError, match=r"unknown key trainings\. .*The keys are name, description, network.backbone"
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("pairs = 8", 'pairs = "8"', "training.pairs is '8': input should be a valid integer."),
        ("pairs = 8", "pairs = 0", "training.pairs is 0: input should be greater than or equal to 1."),
        ("pairs = 8", "", "the key training.pairs is missing. Add training.pairs to the recipe."),
        ('name = "simclr"', "", "the key objective.name is missing. Add objective.name to the recipe."),
        (
            "learning_rate = 1e-4",
            'name = "sgd"\nlearning_rate = 1e-4',
            "optimiser.name is 'sgd': input should be 'adam' or 'adamw'.",
        ),
        (
            "[training]",
            "[geopair]\npositive_radius_m = 30.0\n[training]",
            "never_negative_radius_m is smaller than positive_radius_m: a positive could be a negative.",
        ),
        (
            'name = "simclr"',
            'name = "triplet"',
            "the triplet objective needs negatives: set geopair.negative_mining to partial or full.",
        ),
        (
            "[training]",
            '[geopair]\nnegative_mining = "partial"\n[training]',
            "the two views of a mined negative would be the same image: set augmentation.crop_scale below 1, "
            "or colour_jitter or blur_sigma above 0.",
        ),
        (
            "[training]\npairs = 8",
            '[augmentation]\ncrop_scale = 0.5\n[geopair]\nnegative_mining = "partial"\n[training]\npairs = 7',
            "training.pairs is no multiple of 2: a query comes with one pair of its own and 1 of its mined negatives' "
            "views.",
        ),
    ],
)
def test_a_wrong_value_names_file_and_key(path: Path, old: str, new: str, text: str) -> None:
    with refused(RecipeError, f"{edited(path, old, new)}: {text}", "recipe"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.pairs", "override 'training.pairs': this is not key=value. Write it like training.pairs=32."),
        ("training.pairs=many", "override training.pairs: training.pairs is 'many': input should be a valid integer."),
        (
            "training.pairs=1.5",
            "override training.pairs: training.pairs is 1.5: input should be a valid integer.",
        ),
    ],
)
def test_a_wrong_override_is_named(path: Path, override: str, text: str) -> None:
    with refused(RecipeError, text, "recipe"):
        load_recipe(path, [override])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trainin.pair=32", "training.pairs"),
        ("learning_rte=1", "optimiser.learning_rate"),
        ("training.pairs.more=1", "training.pairs"),
        ("network.backbon=resnet18", "network.backbone"),
    ],
)
def test_an_unknown_override_suggests_the_nearest_key(path: Path, override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    start = f"override '{override}': unknown key {key}. Did you mean {nearest}? The keys are name, description, "
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert str(caught.value).startswith(start)


def test_the_objective_checks_its_own_keys(path: Path) -> None:
    edited(path, 'name = "simclr"', 'name = "simclr"\ntempratur = 0.1')
    text = (
        f"{path}: [objective]: settings that simclr does not take: tempratur: Extra inputs are not permitted. "
        "Its settings are temperature, head_layers, head_width, same_place_m."
    )
    with refused(RecipeError, text, "recipe"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"^override objective.name: \[objective\]: there is no objective 'simcl'\. "):
        load_recipe("simclr-resnet50", ["objective.name=simcl"])
