"""The site files that are shipped, and the table of all keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sitekeys import site_keys

from slurm.script import sbatch_script
from yoda.config import config_text, load_site

ROOT = Path(__file__).parents[2]
SITES = sorted((ROOT / "examples" / "sites").glob("*.yaml"))
PAGE = ROOT / "docs" / "site-file.md"


def test_all_are_there() -> None:
    names = {"laptop", "slurm", "perlmutter-preempt", "perlmutter-regular", "frontier", "tier2-preemptible"}
    assert names <= {path.stem for path in SITES}


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_site_file_is_accepted_and_makes_a_script(path: Path, tmp_path: Path) -> None:
    site = load_site(str(path), here=False)
    assert site.site == path.stem and path.read_text().count("#") >= 3, "not commented"
    assert "default" in config_text(None, site)
    if site.slurm is not None:
        launcher = site.launcher or "mpiexec -n {ranks}"
        where = {"script_path": tmp_path / "job.sh", "logs": tmp_path}
        text = sbatch_script("task", site.slurm, ["yoda", "run", "job.yaml"], launcher=launcher, **where)  # type: ignore[arg-type]
        assert "{ranks}" not in text.split("setsid")[1] and f"--nodes={site.slurm.nodes}" in text


def test_every_key_is_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", PAGE.read_text().split("## Which")[0], re.M)
    told = {key: default.strip("`") for key, default, _ in rows}
    there = site_keys()
    assert [key for key in there if key not in told] == [], f"keys without a row in {PAGE.name}"
    assert [key for key in told if key not in there] == [], f"rows in {PAGE.name} for keys that do not exist"
    wrong = {key: (told[key], there[key]) for key in there if told[key] != there[key]}
    assert wrong == {}, f"defaults in {PAGE.name} (told, true)"
    assert len({key for key, _, _ in rows}) == len(rows)
