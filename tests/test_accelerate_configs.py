"""The configurations for `accelerate launch`: read by Accelerate itself, and what of them this training follows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from accelerate.utils.other import get_free_port

from train import sharding
from train.__main__ import main
from train.ranks import refuse_deepspeed
from vlchat.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def launched(file: Path, *options: str) -> Any:
    """The arguments that `accelerate launch` makes of a configuration, an unknown key of which it refuses."""
    port = str(get_free_port())
    line = ["--config_file", str(file), "--num_processes", "2", "--main_process_port", port, *options]
    return _validate_launch_command(launch_command_parser().parse_args([*line, "-m", "train", "run.yaml"]))[0]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_takes_every_configuration(file: Path) -> None:
    arguments = launched(file)
    assert (arguments.num_processes, arguments.num_machines, arguments.use_cpu) == (2, 1, False)
    assert arguments.use_fsdp == (file.stem == "fsdp2") and arguments.use_deepspeed == ("deepspeed" in file.stem)


def test_all_four_are_there() -> None:
    assert [file.stem for file in CONFIGS] == ["ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp2"]


def test_the_fsdp_configuration_asks_for_what_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare_multi_gpu_env(launched(FOLDER / "fsdp2.yaml"))
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    plugin = sharding.asked("bf16", "adamw", 2)
    assert plugin is not None and plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    sharding.refuse_contradictions("bf16")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FSDP_VERSION", "1", "fsdp_version is 1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "objective.quantize=nf4"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "every process reads the weights"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "objective.checkpointing=true"),
    ],
)
def test_what_is_not_followed_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    for key, given in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", name: value}.items():
        monkeypatch.setenv(key, given)
    with pytest.raises(ConfigError, match=told):
        sharding.asked("bf16", "adamw", 2)


def test_what_two_configurations_say_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="add loop.precision=bf16"):
        sharding.refuse_contradictions("no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match="loop.micro_batch"):
        sharding.refuse_contradictions("bf16")
    for key, given in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(key, given)
    for precision, optimizer in (("fp16", "adamw"), ("bf16", "muon")):
        with pytest.raises(ConfigError, match="with FSDP2"):
            sharding.asked(precision, optimizer, 2)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_configured_and_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    file = FOLDER / f"deepspeed-zero{stage}.yaml"
    told = yaml.safe_load(file.read_text())["deepspeed_config"]
    plugin = DeepSpeedPlugin(
        zero_stage=told["zero_stage"], gradient_clipping=told["gradient_clipping"],
        offload_optimizer_device=told["offload_optimizer_device"], offload_param_device=told["offload_param_device"],
    )  # fmt: skip
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == stage
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="configs/accelerate/fsdp2.yaml"):
        refuse_deepspeed()
    with pytest.raises(ConfigError, match="configs/accelerate/fsdp2.yaml"):
        main([str(ROOT / "configs" / "finetune-mini.yaml")])


DRY_RUN = """
import json, sys
import deepspeed, torch
from accelerate.utils import DeepSpeedPlugin
deepspeed.init_distributed("gloo")
plugin = DeepSpeedPlugin(zero_stage=int(sys.argv[1]), gradient_clipping=1.0)
config = {key: value for key, value in plugin.deepspeed_config.items() if value != "auto"}
config |= {"train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": True}
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
model[0].requires_grad_(False)  # as a tower is
optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.01)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
losses = []
for _ in range(2):
    loss = engine(torch.ones(2, 8)).square().mean()
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
print(json.dumps(losses))
"""


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_itself_steps_where_it_is_installed(stage: int) -> None:
    pytest.importorskip("deepspeed", reason="is no dependency")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = {**os.environ, **alone, "MASTER_PORT": str(get_free_port()), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(stage)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert second < first
