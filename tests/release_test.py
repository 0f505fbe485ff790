"""What a release says of itself says it everywhere alike; `.ci/run` builds and installs one."""

import configparser
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    version = settings["metadata"]["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    newest, date = re.findall(
        r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )[0]
    assert version == newest
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation
