"""Configurations: every shipped one parses, and every mistake is answered with a sentence."""

from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig

from train.config import construct, load_runs, transformers_config
from vlchat.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(file for file in FOLDER.rglob("*.yaml") if file.parent.name != "accelerate")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(
        "run: out\nobjective: {type: clip}\ntrainable: {connector: 1e-3}\nloop: {steps: 3}\ndata: [{path: a.json}]\n"
    )
    return file


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_parses(path: Path) -> None:
    from train.objectives import OBJECTIVES

    runs = load_runs(path)
    assert [config.run for config in runs] == [tree["run"] for tree in yaml.safe_load_all(path.read_text())]
    assert all(config.objective["type"] in OBJECTIVES for config in runs)


def test_overrides_reach_into_lists_and_read_yaml(base: Path) -> None:
    files = ["data.0.path=mine.json", "data.1.path=other.json"]
    (config,) = load_runs(base, [*files, "loop.steps=7", "optim.warmup=1e-1"])
    assert config.data == [{"path": "mine.json"}, {"path": "other.json"}]
    assert (config.loop.steps, config.optim.warmup, config.trainable) == (7, 0.1, {"connector": 0.001})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.stepz=3", r'Unknown key "stepz".*Did you mean "steps"'),
        ("optimm.clip=1", r'Unknown key "optimm".*Did you mean "optim"'),
        ("loop.steps=many", r"loop: steps must be int or null, not 'many'"),
        ("loop.batch=true", "batch must be int"),
        ("loop.steps", r"not an override"),
        ("run.x=3", "plain value"),
        ("data.5.path=x", "list position from 0 to 1"),
        ("data.0.path=[x", r'The value of the override "data.0.path=\[x" is not valid YAML'),
        ("loop.batch=0", "loop.batch must be at least 1, not 0"),
        ("loop.sample_every=0", "loop.sample_every must be at least 1, not 0"),
        ("loop.steps=-1", "loop.steps must be at least 1, not -1"),
        ("loop.minutes=0", "loop.minutes must be above 0, not 0"),
        ("loop.epochs=.nan", "loop.epochs must be above 0, not nan"),
        ("loop.epochs=.inf", "loop.epochs must be above 0, not inf"),
        ("optim.clip=-1", "optim.clip must be above 0, not -1"),
        ("optim.clip=.nan", "optim.clip must be above 0, not nan"),
        ("optim.warmup=.nan", "optim.warmup must be from 0 to 1, not nan"),
        ("optim.warmup=100", "optim.warmup must be from 0 to 1, not 100"),
        ("optim.floor=-1", "optim.floor must be from 0 to 1, not -1"),
        ("optim.weight_decay=-0.1", "optim.weight_decay must be at least 0, not -0.1"),
        ("optim.betas=[0.9]", r"optim.betas must be two numbers from 0 to below 1, not \[0.9\]"),
        ("optim.betas=[0.9, 1.0]", "optim.betas must be two numbers"),
        ("optim.betas=[a, b]", "betas.0 must be float, not 'a'"),
        ("trainable={connector: -1}", 'learning rate of "connector" must be at least 0, not -1'),
        ("trainable={connector: .nan}", 'learning rate of "connector" must be at least 0, not nan'),
        ("max_bad=-1", "max_bad must be at least 0, not -1"),
        ("seed=-1", "seed must be from 0 to 4294967295, not -1"),
        ("seed=4294967296", "seed must be from 0 to 4294967295"),
        ("run=", "run must be str, not None"),
        ("run=' '", "run is empty"),
        ("data=[rows.json]", "data.0 must be dict, not 'rows.json'"),
        ("heldout.data=[1]", "data.0 must be dict, not 1"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(base: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_runs(base, [override])


def test_missing_file_and_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file nowhere.yaml"):
        load_runs("nowhere.yaml")
    file = tmp_path / "a.yaml"
    file.write_text("run: out\n")
    with pytest.raises(ConfigError, match="lacks objective"):
        load_runs(file)


def test_overrides_reach_every_run_of_a_file_and_no_two_share_a_folder(base: Path) -> None:
    base.write_text(base.read_text() + "---\n" + base.read_text().replace("run: out", "run: second"))
    assert [(run.run, run.loop.steps) for run in load_runs(base, ["loop.steps=7"])] == [("out", 7), ("second", 7)]
    with pytest.raises(ConfigError, match="has 2 runs, and two of them write to one folder"):
        load_runs(base, ["run=here"])


def test_construct_refuses_unknown_types_and_keys() -> None:
    def maker(size: int, depth: int = 1) -> tuple[int, int]:
        return size, depth

    assert construct({"maker": maker}, {"type": "maker", "size": 2}, "here") == (2, 1)
    with pytest.raises(ConfigError, match='unknown type "makr".*Did you mean "maker"'):
        construct({"maker": maker}, {"type": "makr"}, "here")
    with pytest.raises(ConfigError, match='Unknown key "sise" in here.*Did you mean "size"'):
        construct({"maker": maker}, {"type": "maker", "sise": 2}, "here")
    with pytest.raises(ConfigError, match="lacks size"):
        construct({"maker": maker}, {"type": "maker"}, "here")
    with pytest.raises(ConfigError, match="here.size must be int, not 'ten'"):
        construct({"maker": maker}, {"type": "maker", "size": "ten"}, "here")
    with pytest.raises(ConfigError, match=r"here \(maker\) takes no data: leave it out"):
        construct({"maker": maker}, {"type": "maker", "size": 2}, "here", data=[])


def test_keys_that_transformers_would_ignore_are_refused() -> None:
    assert transformers_config(LlamaConfig, {"hidden_size": 32}, "objective.model").hidden_size == 32
    with pytest.raises(ConfigError, match='Unknown key "hidden_sise" in objective.model .*Did you mean "hidden_size"'):
        transformers_config(LlamaConfig, {"hidden_sise": 32}, "objective.model")
    with pytest.raises(ConfigError, match=r"objective.model \(LlamaConfig\): .*hidden_size.*expected int, got str"):
        transformers_config(LlamaConfig, {"hidden_size": "32"}, "objective.model")


def test_what_is_no_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name a YAML file"):
        load_runs(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"run: \xff\xfe")
    with pytest.raises(ConfigError, match="can't be read as text"):
        load_runs(tmp_path / "bytes.yaml")
    (tmp_path / "other.yaml").write_text("compute_environment: LOCAL_MACHINE")
    with pytest.raises(ConfigError, match='Unknown key "compute_environment" in .*; known: run, objective, data'):
        load_runs(tmp_path / "other.yaml")
