"""Weights sharded over two processes: gradients, captioner, validation and checkpoints as in one."""

import json

import pytest
import torch
from pydantic import ValidationError

from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.weights import AveragedWeights, OptimizerState, TrainedWeights

from .ranks import check_equal, gradients_of_a_step, in_two_processes, train

STEPS = {
    "accumulated": {"device_batch_size": 2, "captions_per_image": 3},
    "checkpointed": {"grad_checkpointing": True, "clip_grad_norm": 1.0},
    "adapters": {"lora_rank": 4, "freeze_image": True},
    "a number that stays whole": {"scaled": True},
}
RUN = {
    "input": ["scenes:train,n=24,size=48"],
    "model": "coca_tiny",
    "samples_seen": 96,
    "batch_size": 8,
    "num_workers": 0,
    "name": "mine",
    "device": "cpu",
    "checkpoint_every": 5,
    "ema": 0.5,
    "validate_every": 48,
    "freeze_image": True,
    "eval_input": ["scenes:test,n=2,size=48"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of a run that never stops, and of two that stop and have one half, before or after it, sharded."""
    folder = tmp_path_factory.mktemp("runs")
    settings_of = lambda name, **changes: RUN | {"output": str(folder / name)} | changes  # noqa: E731
    train(settings_of("whole"))
    train(settings_of("then"), steps=8)
    runs = [(settings_of("first", shard=True), 8), (settings_of("then", shard=True), None)]
    in_two_processes(
        folder / "found.pt", gradients=[settings | {"shard": True} for settings in STEPS.values()], runs=runs
    )
    train(settings_of("first"))
    return folder


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_one_process(name, folder):
    results = torch.load(folder / "found.pt", weights_only=True)
    check_equal(results[list(STEPS).index(name)], gradients_of_a_step(**STEPS[name]))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("which", ["first", "then"])
def test_a_stopped_run_goes_on_with_and_without_shards(which, folder):
    whole_run, stopped_run = folder / "whole", folder / which
    assert [row["step"] for row in rows(stopped_run / "train.jsonl")] == list(range(1, 13))
    for log in ("train.jsonl", "validation.jsonl"):
        for ours, theirs in zip(rows(stopped_run / log), rows(whole_run / log), strict=True):
            numbers = [key for key, value in theirs.items() if isinstance(value, float)]
            assert {key: ours[key] for key in numbers} == pytest.approx(
                {key: theirs[key] for key in numbers}, rel=1e-4, abs=1e-6
            )
    for where in (".", "best"):
        ours, theirs = (load_captioner(str(path / where)).model.state_dict() for path in (stopped_run, whole_run))
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0, msg=name)


def test_shards_need_a_precision_that_fits(tmp_path):
    with pytest.raises(ValidationError, match="weights in 4 bits cannot be sharded; fp16 cannot be sharded"):
        FinetuneConfig(**RUN, output=tmp_path, shard=True, dtype="fp16", lora_rank=4, four_bit=True)


def test_a_checkpoint_whose_groups_had_other_weights_is_refused():
    first, second = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    state = OptimizerState(torch.optim.AdamW([{"params": []}, {"params": [first, second]}])).state_dict()
    with pytest.raises(
        ValueError, match="of an earlier version of capsmith, whose weight decay was for other weights"
    ):
        OptimizerState(torch.optim.AdamW([{"params": [first]}, {"params": [second]}])).load_state_dict(state)


def test_the_average_is_that_of_torch():
    """The average starts with the initial weights; frozen weights are not in it."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    ours = AveragedWeights(trained := TrainedWeights(model), 0.9)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # torch's first update only copies
    for _ in range(3):
        with torch.no_grad():
            model[0].weight += torch.randn(2, 3)
        ours.update()
        theirs.update_parameters(model)
    assert ours.state_dict().keys() == trained.state_dict().keys() == {"0.weight", "0.bias"}
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs.module.state_dict()[name])
    trained.load_state_dict(ours.state_dict())
    assert torch.equal(model[0].weight, ours.weights["0.weight"])
