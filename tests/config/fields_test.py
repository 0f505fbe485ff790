"""The fields: declared once, read somewhere, refused by name."""

import ast
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags
from tiny import CONFIGS

import evovit_jax
from evovit_jax import config as config_lib
from evovit_jax.config import durations
from evovit_jax.errors import UserError
from evovit_jax.models.registry import model_table

# ml_collections loads recipes in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PACKAGE = pathlib.Path(evovit_jax.__file__).parent
RECIPE = str(CONFIGS / "digits_evo.py")


def sources():
    # Where fields are declared or shrunk they are not read.
    return [p for p in PACKAGE.rglob("*.py") if p.name not in ("fields.py", "variants.py")]


def read_names():
    """Attributes and strings of the package, and `x.y` for every attribute of an attribute."""
    names = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
                if isinstance(node.value, ast.Attribute):
                    names.add(f"{node.value.attr}.{node.attr}")
                elif isinstance(node.value, ast.Name):
                    names.add(f"{node.value.id}.{node.attr}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def test_every_field_has_a_reader():
    read = read_names()
    settings = {f for e in model_table().values() for f in e.model.Config.__dataclass_fields__}
    unread = []
    for field in config_lib.field_names(config_lib.get_config()):
        group, _, name = field.rpartition(".")
        name_of_duration, _, unit = name.rpartition("_")
        if unit in durations.UNITS and name_of_duration in durations.NAMES:
            found = name_of_duration in read
        elif group == "model" and name != "name":
            found = name in settings  # all of them are given to create_model
        elif name == "name":  # too common a word: with its group
            found = f"{group}.name" in read
        else:
            found = name in read or field in read
        if not found:
            unread.append(field)
    assert not unread


def test_every_field_is_explained():
    lines = (PACKAGE / "config" / "fields.py").read_text().splitlines()
    silent = []
    for i, line in enumerate(lines):
        text = line.strip()
        is_field = text.startswith(("c.", "_duration(c,")) and not text.startswith("c.update")
        group = text.endswith(("ConfigDict()", "_optim()", "_augment()", "_eval_transform()"))
        group = group or text.endswith(("_loss()", "_model()", "_distill()"))
        explained = "  # " in line or lines[i - 1].strip().startswith("#")
        if is_field and not group and not explained:
            silent.append(text)
    # What these mean is their name's meaning in every paper.
    assert silent == []


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


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"there is no config file 'nope\.py'"):
        config_lib.load("nope.py")


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
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("accumulate", 3, "does not divide into accumulate=3"),
        ("ema.decay", 1.0, "ema.decay=1.0 must be in [0, 1)"),
        ("optim.learning_rate", -1.0, "optim.learning_rate=-1.0 must be at least 0"),
        ("optim.eps", float("nan"), "optim.eps=nan must be at least 0"),
        ("data_limit_unreadable", -1, "data_limit_unreadable=-1 must be at least 0"),
        ("augment.repeats", 0, "augment.repeats=0 must be at least 1"),
        ("loss.label_smoothing", 1.5, "loss.label_smoothing=1.5 must be in [0, 1]"),
        ("eval_transform.crop_fraction", 0.0, "crop_fraction=0.0 must be in (0, 1]"),
        ("distill.tau", float("inf"), "distill.tau=inf must be above 0"),
        ("model.patch_size", 0, "model.patch_size=0 must be at least 1"),
        ("mean", ("a", "b", "c"), "mean=('a', 'b', 'c'): each must be in [0, 1]"),
        ("mean", (0.5, 0.5), "mean=(0.5, 0.5) must have 3 numbers"),
        ("std", (0.5, 0.0, 0.5), "std=(0.5, 0.0, 0.5): each must be above 0"),
        ("augment.scale", (-0.5, 1.0), "augment.scale=(-0.5, 1.0): each must be above 0"),
    ],
)
def test_values_that_no_run_can_use(field, value, message):
    config = config_lib.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        config_lib.check(config)
    assert message in str(error.value)


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
