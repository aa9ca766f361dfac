"""`python -m tools.pretrain` from text to a folder that transformers loads, on a small text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from t5ts.checkpoint import load_checkpoint as load_state
from t5ts.model.weights import load_checkpoint
from tools.pretrain.__main__ import main, parser

SHAPE = ["--d-model", "32", "--d-ff", "64", "--d-kv", "8", "--num-layers", "1"]
SHAPE += ["--num-heads", "4", "--input-length", "32"]
STEPS = 30
TRAIN = [*SHAPE, "--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--dropout", "0.1"]
TRAIN += ["--warmup", "5", "--log-every", "4", "--eval-every", "10", "--eval-rows", "16"]


def train(work: Path, run: str, *more: str, steps: int = STEPS) -> None:
    main(["train", "--work", str(work), "--run", run, *TRAIN, "--steps", str(steps), *more])


def rows(work: Path, run: str) -> list[dict[str, Any]]:
    text = (work / run / "metrics.jsonl").read_text()
    return [
        {k: v for k, v in json.loads(line).items() if k != "tokens_per_s"}
        for line in text.splitlines()
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A prepared text (two phrases in many mixtures) and one whole run of 30 steps."""
    root = tmp_path_factory.mktemp("pretrain")
    generator = np.random.default_rng(0)
    subjects = ["the old fisherman", "a small green bird", "every honest judge", "my neighbour"]
    verbs = ["looked at", "went along with", "could not forget", "was afraid of"]
    objects = ["the long river", "an empty house", "those heavy stones", "the evening bell"]
    (root / "text").mkdir()
    for document in range(30):
        paragraphs = [
            " ".join(
                f"{generator.choice(subjects)} {generator.choice(verbs)} "
                f"{generator.choice(objects)}, said number {'i' * int(generator.integers(1, 30))}."
                for _ in range(4)
            )
            for _ in range(8)
        ]
        (root / "text" / f"{document:02d}.txt").write_text("\n\n".join(paragraphs))
    where = ["--work", str(root), "--text", str(root / "text")]
    main(["prepare", *where, "--vocab-size", "420", "--held-out-share", "0.2"])
    train(root, "whole")
    return root


def test_loss_falls(work):
    losses = [row["held_out_loss"] for row in rows(work, "whole") if "held_out_loss" in row]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(np.log(420), rel=0.25)
    assert losses[-1] < 0.75 * losses[0]


def test_resumed_equals_uninterrupted_bitwise(work):
    """Also where a kill -9 left rows that are newer than the checkpoint."""
    for stop in ("7", "20"):
        train(work, "parts", "--stop-step", stop)
        with (work / "parts" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 22, "train_loss": 1.0}\n{"half a ro')
    train(work, "parts")
    (whole, whole_state), (parts, parts_state) = (
        load_state(work / run / "last.safetensors") for run in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert rows(work, "whole") == rows(work, "parts")
    for key in ("step", "input_tokens", "target_tokens", "legs", "optimizer_steps"):
        assert whole_state[key] == parts_state[key], key


def test_a_longer_schedule_goes_on_and_is_recorded(work):
    train(work, "longer", "--stop-step", "6", steps=10)
    train(work, "longer", steps=12)
    _, state = load_state(work / "longer" / "last.safetensors")
    assert [(leg["from_step"], leg["settings"]["total_steps"]) for leg in state["legs"]] == [
        (0, 10),
        (6, 12),
    ]
    assert state["step"] == 12


def test_another_shape_does_not_resume(work, capsys):
    with pytest.raises(SystemExit) as stop:
        train(work, "whole", "--d-ff", "128")
    assert stop.value.code == 2
    assert "belongs to another run" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops(work, capsys):
    with pytest.raises(SystemExit) as stop:
        train(work, "burst", "--lr", "1e30")
    assert stop.value.code == 2
    assert "not finite" in capsys.readouterr().err


def test_evaluation_has_its_baselines(work, capsys):
    foreign = work / "foreign.txt"
    foreign.write_text("The river was an honest judge of every stone, said the bird.\n" * 40)
    arguments = ["evaluate", "--work", str(work), "--run", "whole", *SHAPE]
    capsys.readouterr()
    main([*arguments, "--held-out", str(foreign)])
    first = capsys.readouterr().out
    scores = json.loads(first)["scores"]
    assert set(scores) == {"corpus, held-out part", "foreign.txt"}
    own = scores["corpus, held-out part"]
    assert own["all"]["tokens"] > own["text"]["tokens"] > 0
    assert own["all"]["model"] < own["all"]["random_init"]
    assert 0 < own["all"]["unigram_entropy"] < np.log(420)
    main([*arguments, "--held-out", str(foreign)])
    assert capsys.readouterr().out == first  # masks are fixed


def test_export_loads_in_transformers_and_equals_our_loader(work, tmp_path):
    from transformers import AutoTokenizer, T5EncoderModel

    main(["export", "--work", str(work), "--run", "whole", *SHAPE, "--out", str(tmp_path / "t5")])
    encoder, info = T5EncoderModel.from_pretrained(tmp_path / "t5", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = encoder.state_dict()
    ours, report = load_checkpoint(path=tmp_path / "t5")
    assert all(torch.equal(theirs[f"encoder.{name}"].float(), ours[name]) for name in ours)
    assert report.num_params_full == sum(p.numel() for p in encoder.parameters())
    stored = load_file(tmp_path / "t5" / "model.safetensors")
    trained, _ = load_state(work / "whole" / "last.safetensors")
    assert torch.equal(stored["shared.weight"], trained["model/shared.weight"].bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t5")
    ids = tokenizer("the long river").input_ids
    assert ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the long river"
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == 419


def test_help_explains_every_command(capsys):
    for command in ("prepare", "train", "evaluate", "export"):
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
        assert "--work" in capsys.readouterr().out
