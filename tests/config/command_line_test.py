"""Recipes from files and flags: what is misspelt, missing or does not run is named."""

import pytest
from absl import flags
from hostile_files import irregular, not_for_ever
from ml_collections import config_flags
from tiny import CONFIGS

from evovit_jax import config as config_lib
from evovit_jax.config import command_line, durations
from evovit_jax.errors import UserError

# ml_collections loads recipes in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

RECIPE = str(CONFIGS / "digits_evo.py")


def parse(*args, recipe=RECIPE):
    values = flags.FlagValues()
    argv = ["main", f"--config={recipe}", *args]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
        config_flags.DEFINE_config_file("config", flag_values=values)
        return config_lib.from_flags(values, argv, ("config",))


def test_overrides():
    found = parse("--config.batch_size=8", "--config.ema.decay=0", "--config.mean=(0.1,0.2,0.3)")
    assert (found.batch_size, found.ema.decay, found.mean) == (8, 0, (0.1, 0.2, 0.3))


def test_a_duration_on_the_command_line_replaces_its_siblings():
    assert parse().total_epochs
    found = parse("--config.total_steps=7")
    assert (found.total_steps, found.total_epochs, found.total_examples) == (7, None, None)
    assert durations.steps(found, "total", examples=100) == 7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.optim.learning_rat=1"], "did you mean config.optim.learning_rate"),
        (["--config.decay=1"], "did you mean config.ema.decay"),
        (["--config.xyzzy=1"], "unknown field config.xyzzy"),
        (["--config.batch_size=1.5"], "config.batch_size=1.5"),
        (["--config.mean[0]=0.5"], 'config.mean is given whole: --config.mean="(0.31,'),
        (["--config.model=3"], "unknown field config.model"),
        (["--confg=3"], "confg"),
    ],
)
def test_what_is_misspelt_is_named(args, message):
    with pytest.raises((UserError, flags.Error)) as error:
        parse(*args)
    assert message in str(error.value)
    assert isinstance(error.value, UserError)


def test_a_variant_that_is_not_there():
    with pytest.raises(UserError, match="unknown variant 'smke' of this config; did you mean"):
        config_lib.load(f"{RECIPE}:smke")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("deit_s_ev", "deit_s_evo"), ("configs/deit_s_evo.py", "deit_s_evo"), ("nope.py", "cifar10")],
)
def test_a_file_that_is_not_there(spec, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"there is no config file '{spec}'.* by name: .*{hint}"):
        config_lib.load(spec)


@pytest.mark.parametrize("words", [["--config=digits_evo:smoke"], ["--config", "digits_evo:smoke"]])
def test_a_recipe_by_its_name(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["main", *words, "--config.seed=3"]
    monkeypatch.setattr("sys.argv", argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    found = config_lib.from_flags(values, argv, ("config",))
    expected = config_lib.load(f"{RECIPE}:smoke")
    expected.seed = 3
    assert found.to_dict() == expected.to_dict()


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_evo").write_text(
        "from evovit_jax import config\n"
        "def get_config(variant):\n"
        "    c = config.get_config()\n"
        "    c.seed = 7\n"
        "    return c\n"
    )
    assert config_lib.load("digits_evo").seed == 7
    assert config_lib.load("deit_s_evo").seed == 0


@pytest.mark.parametrize("inside", [True, False])
def test_recipes_are_in_the_package_or_beside_it(inside, tmp_path, monkeypatch):
    package = tmp_path / "evovit_jax"
    there = (package if inside else tmp_path) / "configs" / "mine.py"
    there.parent.mkdir(parents=True)
    there.write_text("")
    monkeypatch.setattr(command_line, "__file__", str(package / "config" / "command_line.py"))
    assert command_line.recipes() == {"mine": there}


def test_a_recipe_with_a_field_that_is_not_there(tmp_path):
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "from evovit_jax import config\n"
        "def get_config(variant):\n"
        "    c = config.get_config()\n"
        "    c.optim.learning_rat = 1\n"
        "    return config.finish(c, variant)\n"
    )
    with pytest.raises(UserError, match=r"r\.py line 4: .*learning_rat"):
        config_lib.load(str(recipe))


def test_a_flag_that_is_required():
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    with pytest.raises(UserError, match="--workdir is required"):
        config_lib.from_flags(values, ["main"], ("workdir",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", r"line 1: No module named 'nothing_of_that_name'"),
        ("x = (\n", r"recipe\.py: .*was never closed.*line 1"),
        ("def get_config(variant):\n    return 1 / 0", r"line 2: division by zero"),
    ],
)
def test_a_recipe_that_does_not_run(tmp_path, text, message):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        config_lib.load(str(path))


@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "gone", "huge"])
def test_a_recipe_is_a_regular_file(tmp_path, kind):
    path = irregular(tmp_path, kind)
    message = r"there is no config file|cannot be read: it (is no regular file|has 1048576 MB)"
    with not_for_ever(), pytest.raises(UserError, match=message):
        config_lib.load(path)
