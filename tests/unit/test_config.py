"""Job and site files: what is read, and what every mistake is answered with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventrange.errors import BAD_CONFIG, ConfigError, InputMissing
from yoda.config import config_json, config_text, default_task_dir, explain_config, load_job, load_site
from yoda.schema import Commit

JOB = """\
task: zjets
seed: 42
inputs:
  format: lhe
  files: [a.lhe]
payload:
  python: shower.py:Shower
  options: {tune: off, cut: 1e-3}
ranges: {seconds: 1min}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file beside its payload and its one input."""
    (tmp_path / "shower.py").write_text("class Shower: ...\n")
    (tmp_path / "a.lhe").write_text("<LesHouchesEvents>")
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def refused(path: Path | str, *sets: str, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_job(str(path), sets, **options)
    assert caught.value.exit_code == BAD_CONFIG
    return caught.value


def refused_site(text: str, tmp_path: Path) -> ConfigError:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_site(str(tmp_path / "site.yaml"))
    return caught.value


def test_reads_a_job_with_defaults(job: Path) -> None:
    read = load_job(str(job))
    assert (read.task, read.seed, read.inputs.files) == ("zjets", 42, (str(job.parent / "a.lhe"),))
    assert read.payload.options == {"tune": "off", "cut": 1e-3}
    assert read.ranges.events is None and read.ranges.seconds == 60 and read.ranges.max_attempts == 3
    assert read.output.compression == "gzip" and read.inputs.events is None
    assert read.path == str(job) and read.payload_file == str(job.parent / "shower.py")
    assert default_task_dir(read) == str(job.parent / "zjets.task")


def test_reads_a_site(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        "site: here\nscratch: $SCRATCH/x\nworkers: auto\nsegments: {max_bytes: 500MB, max_age: 1h30min, format: zip}\n"
        "commit: {seconds: 0.2, bytes: 1MiB}\nmargin: auto\ngrace: 2-04:00:00\n"
        "stageout: [{name: primary, url: 's3://bucket/prefix'}]\nslurm: {partition: p, time: 4h}\n"
    )
    site = load_site(str(path), environ={"SCRATCH": "/scratch"})
    assert site.scratch == "/scratch/x" and site.workers is None and site.margin is None
    assert (site.segments.max_bytes, site.segments.max_age, site.segments.format) == (500_000_000, 5400.0, "zip")
    assert site.commit.seconds == 0.2 and site.grace == 2 * 86400 + 4 * 3600
    assert site.stageout[0].name == "primary" and site.slurm is not None and site.slurm.partition == "p"


def test_site_defaults_without_a_file() -> None:
    site = load_site(None)
    assert site.path is None and site.site == "local" and site.commit.bytes == 64 << 20 and site.grace == 30


@pytest.mark.parametrize(("seconds", "journal"), [(1.0, 0.125), (10.0, 1.25), (0.2, 0.1), (0.5, 0.125)])
def test_both_waits_for_a_commit_together_are_what_the_site_allows(seconds: float, journal: float) -> None:
    commit = Commit(seconds=seconds)
    assert commit.yoda_seconds == pytest.approx(journal)
    assert commit.yoda_seconds + commit.droid_seconds == pytest.approx(seconds)


def test_undefined_variable_in_scratch(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("scratch: $NOWHERE/x\n")
    with pytest.raises(ConfigError, match=r"\$NOWHERE, which is not set"):
        load_site(str(path), environ={})
    assert load_site(str(path), environ={}, here=False).scratch == "$NOWHERE/x"


# --- files that are no job --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n- b\n", "holds a list"),
        ("hello\n", "not keys"),
        ("task: [a\nseed: 1\n", "line 2"),
        ("task: a\n\tseed: 1\n", "tabs"),
        ("task: a\nseed: 1\ntask: b\n", "written twice, on lines 1 and 3"),
        ("task: &a [*a]\n", "contains itself"),
        ("1: a\n", "is not text"),
        ("seed: 1\n", "task: is missing"),
        ("task: a\n", "seed: is missing"),
        ("task: a\nseed: 1\n", "inputs: is missing"),
        ("task: a\nseed: 1\ninputs:\n", "inputs: expected keys and values, found nothing"),
        ("task: a\nseed: 1\ninputs: {}\n", "inputs.format: is missing"),
        ("task: !!python/object:os.system a\n", "not valid YAML"),
        ("task: a\n--- \ntask: b\n", "not valid YAML"),
        ("task: \x01\n", "forbids"),
    ],
)
def test_files_that_are_no_job(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    error = refused(path)
    assert says in str(error) and str(path) in str(error) and "\n  -> " in str(error)


def test_bad_syntax_gives_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("task: a\ninputs: {format: lhe]\n")
    assert refused(path).values["key"] == "line 2, column 21"


def test_missing_directory_and_bytes(tmp_path: Path) -> None:
    assert "no such file" in str(refused(tmp_path / "absent.yaml"))
    assert "directory" in str(refused(tmp_path))
    (tmp_path / "job.yaml").write_bytes(b"task: \xff\n")
    assert "byte 6 is not UTF-8" in str(refused(tmp_path / "job.yaml"))


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "key", "says"),
    [
        ("ranges.max_atempts=3", "ranges.max_atempts", "did you mean 'max_attempts'?"),
        ("rnges.events=3", "rnges.events", "did you mean 'ranges.events'?"),
        ("inputs.format=lhef", "inputs.format", "did you mean 'lhe'?"),
        ("seed=-1", "seed", "0 or more"),
        (f"seed={1 << 63}", "seed", "or less"),
        ("seed=abc", "seed", "expected a whole number, found the text abc"),
        ("seed=true", "seed", "found the truth value true"),
        ("seed=1.5", "seed", "found the number 1.5"),
        ("task=a/b", "task", "letters, digits"),
        ("task=..", "task", "no name"),
        ("task=3", "task", "expected text, found the number 3"),
        (f"task={'a' * 200}", "task", "200 characters"),
        ("inputs.events=0", "inputs.events", "1 or more"),
        ("ranges.max_attempts=0", "ranges.max_attempts", "1 or more"),
        ("ranges.events=never", "ranges.events", "a whole number or auto"),
        ("ranges.seconds=0", "ranges.seconds", "more than 0"),
        ("ranges.seconds=.nan", "ranges.seconds", "finite"),
        ("ranges.timeout=4:30", "ranges.timeout", "4h30min"),
        ("ranges.timeout=5 parsecs", "ranges.timeout", "unknown unit"),
        ("ranges.timeout=[1]", "ranges.timeout", "not a duration"),
        ("payload.memory=2XB", "payload.memory", "not a size"),
        ("output.merge=maybe", "output.merge", "true or false"),
        ("output=3", "output", "expected keys and values"),
        ("inputs.files=a.lhe", "inputs.files", "expected a list"),
        ("inputs.options=[1]", "inputs.options", "expected keys and values"),
        ("payload.options.when=!!timestamp 2024-01-01", "payload.options.when", "type date"),
        ("payload.command=[./x]", "payload", "both there"),
        ("payload.python=null", "payload", "neither"),
        ("payload.python=shower.py", "payload.python", "FILE.py:NAME"),
        ("payload.python=absent.py:Shower", "payload.python", "there is no file"),
        ("payload.python='shower.py:not a name'", "payload.python", "cannot be the name"),
        ("payload.python=a-b:C", "payload.python", "neither a .py file nor"),
        ("payload={command: [sim, {input}]}", "payload.command.1", "quotes in YAML: '{input}'"),
        ("payload={command: [sim, '{inptu}']}", "payload.command.1", "did you mean 'input'?"),
        ("payload={command: []}", "payload.command", "no program"),
        ("payload={command: [./absent]}", "payload.command.0", "there is no program"),
        ("payload={command: [./a.lhe]}", "payload.command.0", "chmod +x"),
        ("inputs.files=[]", "inputs.files", "needs input files"),
        ("inputs.files=['']", "inputs.files.0", "an empty name"),
        ("inputs.files=[b*.lhe]", "inputs.files.0", "no file matches 'b*.lhe'"),
        ("inputs.files=[a.lhe, ./a.lhe]", "inputs.files.1", "already there"),
        ("inputs.files=[$NOPE/a]", "inputs.files.0", "$NOPE, which is not set"),
        ("inputs.format=generate", "inputs.files", "reads no files"),
        ("inputs={format: generate}", "inputs.events", "needs it"),
        ("nonsense", "nonsense", "not key=value"),
        ("a..b=1", "a..b=1", "not key=value"),
        ("seed=[", "seed", "not valid YAML"),
        ("seed.x=1", "seed.x", "has no keys"),
        ("inputs.files.3=b", "inputs.files.3", "not an entry of the list"),
        ("inputs.files.x=b", "inputs.files.x", "write a number from 0 to 1"),
    ],
)
def test_every_mistake_names_key_and_remedy(job: Path, given: str, key: str, says: str) -> None:
    error = refused(job, given)
    assert error.values["key"] == key
    assert says in str(error)
    assert error.values["file"].startswith(("--set", str(job)))
    assert error.values["hint"]


def test_errors_of_a_file_name_file_and_line(job: Path) -> None:
    job.write_text(JOB.replace("seed: 42", "seed: many"))
    assert str(refused(job)).startswith(f"{job}:2: seed: expected a whole number, found the text many")


def test_a_key_of_the_other_file(job: Path, tmp_path: Path) -> None:
    job.write_text(JOB + "grace: 3\n")
    assert "move it to the site file" in str(refused(job))
    assert "move it to the job file" in str(refused_site("seed: 3\n", tmp_path))


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("stageout: [{name: a}]", "stageout.0.url", "is missing"),
        ("stageout: [{name: a, url: 's3://b', secret: hunter2}]", "stageout.0.secret", "unknown key"),
        ("stageout: [{name: a, url: 's3://b'}, {name: a, url: 's3://c'}]", "stageout.1.name", "already an endpoint"),
        ("stageout: [{name: a, url: 'ftp://b'}]", "stageout.0", "s3://"),
        ("stageout: [{name: a, url: 's3://b/c'}, {name: d, url: 's3://b/c/'}]", "stageout.1.url", "same place"),
        ("stageout: [{name: a, url: 'file:///b'}, {name: d, url: 'file:///c/../b/'}]", "stageout.1.url", "same place"),
        ("stageout: {name: a}", "stageout", "expected a list"),
        ("slurm: {time: soon}", "slurm.time", "soon"),
        ("slurm: {nodes: 0}", "slurm.nodes", "at least 1"),
        ("commit: {seconds: 0}", "commit.seconds", "more than 0"),
        ("segments: {format: rar}", "segments.format", "tar"),
        ("workers: 0", "workers", "1 or more or auto"),
        ("grace: -1", "grace", "not negative"),
    ],
)
def test_site_mistakes(tmp_path: Path, text: str, key: str, says: str) -> None:
    error = refused_site(text, tmp_path)
    assert error.values["key"] == key and says in str(error) and "hunter2" not in str(error)


def test_buckets_of_one_name_at_different_services_are_different_places(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    urls = (
        "{name: a, url: 's3://b', endpoint_url: 'https://one'}, {name: c, url: 's3://b', endpoint_url: 'https://two'}"
    )
    path.write_text(f"stageout: [{urls}]\n")
    assert len(load_site(str(path)).stageout) == 2


# --- files ------------------------------------------------------------------------------------------------------------


def test_globs_are_sorted_and_urls_kept(job: Path) -> None:
    for name in ("c2.lhe", "c1.lhe", "c10.lhe"):
        (job.parent / name).write_text(name)
    read = load_job(str(job), ["inputs.files=[c*.lhe, 's3://b/x.lhe', $D/a.lhe]"], environ={"D": str(job.parent)})
    names = [name.removeprefix(f"{job.parent}/") for name in read.inputs.files]
    assert names == ["c1.lhe", "c10.lhe", "c2.lhe", "s3://b/x.lhe", "a.lhe"]


def test_a_name_with_brackets_is_itself_where_it_exists(job: Path) -> None:
    (job.parent / "r[1].lhe").write_text("x")
    assert load_job(str(job), ["inputs.files=['r[1].lhe']"]).inputs.files == (str(job.parent / "r[1].lhe"),)


def test_the_same_file_through_a_link_is_refused(job: Path) -> None:
    (job.parent / "b.lhe").symlink_to("a.lhe")
    assert "same file as" in str(refused(job, "inputs.files=['*.lhe']"))


def test_missing_input_says_what_is_there(job: Path) -> None:
    with pytest.raises(InputMissing, match=r"did you mean a\.lhe"):
        load_job(str(job), ["inputs.files=[aa.lhe]"])
    with pytest.raises(InputMissing, match="is not a file"):
        load_job(str(job), ["inputs.files=[.]"])


def test_a_command(job: Path) -> None:
    program = job.parent / "sim"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    read = load_job(str(job), ["payload={command: [./sim, '{input}', '{{HOME}}', '{first}']}"])
    assert read.payload.command == ("./sim", "{input}", "{{HOME}}", "{first}")
    assert read.payload_file == str(program)


# --- --set and origins ------------------------------------------------------------------------------------------------


def test_sets_apply_before_validation_and_in_order(job: Path) -> None:
    job.write_text(JOB.replace("seed: 42", "seed: wrong"))
    sets = ["seed=1", "seed=2", "payload.options={}", "payload.options.Beams:eCM=13e3", "inputs.files.0=shower.py"]
    read = load_job(str(job), [*sets, "inputs.files.1=a.lhe", "grace=1h", "output.merge=yes", "inputs.events=1e3"])
    assert read.seed == 2 and read.payload.options == {"Beams:eCM": 13000.0} and read.output.merge is True
    assert [Path(name).name for name in read.inputs.files] == ["shower.py", "a.lhe"] and read.inputs.events == 1000


def test_origins(job: Path, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("grace: 60\nstageout: [{name: a, url: 's3://b'}]\n")
    sets = ["ranges.max_attempts=5", "payload.options.cut=2", "segments={max_age: 60}", "stageout.0.region=x"]
    site = load_site(str(tmp_path / "site.yaml"), sets)
    rows = {key: (value, origin) for key, value, origin in explain_config(load_job(str(job), sets), site)}
    assert rows["seed"] == (42, "job.yaml")
    assert rows["ranges.max_attempts"] == (5, "--set")
    assert rows["ranges.seconds"] == ("1min", "job.yaml")
    assert rows["ranges.timeout"] == ("auto", "default")
    assert rows["payload.options.tune"] == ("off", "job.yaml")
    assert rows["payload.options.cut"] == (2, "--set")
    assert rows["grace"] == ("1min", "site.yaml")
    assert rows["segments.max_age"] == ("1min", "--set")
    assert rows["segments.max_bytes"] == ("1GiB", "default")
    assert rows["stageout.0.url"] == ("s3://b", "site.yaml")
    assert rows["stageout.0.region"] == ("x", "--set")
    assert rows["stageout.0.profile"] == (None, "default")


def test_text_and_json(job: Path) -> None:
    read, site = load_job(str(job)), load_site(None)
    assert "ranges.seconds: 1min" in config_text(read, site) and "# job.yaml" in config_text(read, site)
    document = json.loads(json.dumps(config_json(read, site)))
    assert document["version"] == 1 and document["task_dir"].endswith("zjets.task")
    assert {"key": "seed", "value": 42, "origin": "job.yaml"} in document["keys"]


def test_importing_config_is_light() -> None:
    code = "import sys, yoda.config; print(*{'numpy', 'h5py', 'rich', 'boto3', 'mpi4py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_ranges_that_someone_else_named(job: Path) -> None:
    folder = job.parent
    (folder / "r.json").write_text("[]")
    found = load_job(str(job), ["ranges.file=r.json", "ranges.numbering=inputs"]).ranges
    assert (found.file, found.numbering) == (str(folder / "r.json"), "inputs")
    assert load_job(str(job), ["ranges.file=$R"], environ={"R": "r.json"}).ranges.file == str(folder / "r.json")
    for sets, key, says in (
        (["ranges.file=s.json"], "ranges.file", "there is no file"),
        (["ranges.file=$NOWHERE/s"], "ranges.file", "NOWHERE"),
        (["ranges.file=r.json", "ranges.events=5"], "ranges.events", "how many events each range has"),
        (["ranges.file=r.json", "inputs.events=5"], "inputs.events", "which events the task has"),
        (["ranges.numbering=inputs"], "ranges.numbering", "there is none"),
        (["ranges.file=r.json", "ranges.numbering=job"], "ranges.numbering", "not one of file, inputs"),
    ):
        error = refused(job, *sets)
        assert error.values["key"] == key and says in error.values["detail"], error
    generated = ["inputs={format: generate, events: 5}", "ranges.file=r.json"]
    assert load_job(str(job), generated).inputs.events == 5, "there it says where events end"
