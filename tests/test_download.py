"""The download command, against a local server that speaks the hub's protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from data.ett_files import write_ett
from hub_server import TINY, HubServer, full_model, serve, write_checkpoint

from t5ts.download import main
from t5ts.model.checkpoint_file import file_sha256

HUB_ID = "google/t5-efficient-tiny"
#: The backbone's own values would want the published checkpoint; these are the tiny stand-in's.
BACKBONE = [
    "backbone=t5_efficient_tiny",
    f"backbone.d_model={TINY.d_model}",
    f"backbone.d_ff={TINY.d_ff}",
    f"backbone.d_kv={TINY.d_kv}",
    f"backbone.num_layers={TINY.num_layers}",
    f"backbone.num_heads={TINY.num_heads}",
    f"backbone.vocab_size={TINY.vocab_size}",
    "backbone.full_params=null",
]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with serve() as server:
        server.add(HUB_ID, write_checkpoint(tmp_path / "served", TINY, full_model(TINY)))
        yield server


def places(hub: HubServer, tmp_path: Path) -> list[str]:
    return ["--endpoint", hub.endpoint, "--cache-dir", str(tmp_path / "cache")]


def test_fetch_verifies_and_prints_the_verdict(hub, tmp_path: Path, capsys) -> None:
    assert main([*BACKBONE, *places(hub, tmp_path), "--token", "secret"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "weights", "d_model", "full", "encoder", "verdict", "RMS",
    ]  # fmt: skip
    assert HUB_ID in lines[0]
    assert "pretrained T5, verified" in lines[4]
    assert any(request.get("authorization") == "Bearer secret" for request in hub.asked("GET", ""))


def test_list_shows_what_is_cached(hub, tmp_path: Path, capsys) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert main(["--list", *cache]) == 0
    before = capsys.readouterr().out
    assert before.count("apache-2.0") == 9
    assert before.count(" no\n") == 8
    assert before.count("comes with t5ts\n") == 1
    main([*BACKBONE, *places(hub, tmp_path)])
    capsys.readouterr()
    assert main(["--list", *cache]) == 0
    (row,) = [r for r in capsys.readouterr().out.splitlines() if r.startswith("t5_efficient_tiny")]
    assert "MB in" in row


def test_verify_needs_no_network_and_finds_damage(hub, tmp_path: Path, capsys) -> None:
    main([*BACKBONE, *places(hub, tmp_path)])
    cache = ["--cache-dir", str(tmp_path / "cache")]
    asked = len(hub.asked("GET", ""))
    assert main(["--verify", *BACKBONE, *cache]) == 0
    assert len(hub.asked("GET", "")) == asked
    (blob,) = [p for p in (tmp_path / "cache").rglob("blobs/*") if p.stat().st_size > 10_000]
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)
    assert main(["--verify", *BACKBONE, *cache]) == 2
    assert "t5ts: " in capsys.readouterr().err


def test_data_is_fetched_or_read_by_name(tmp_path: Path, capsys) -> None:
    write_ett(tmp_path, "etth1")
    digest = file_sha256(tmp_path / "ETTh1.csv")
    assert main(["data=etth1", f"data.dir={tmp_path}", f"data.sha256={digest}"]) == 0
    assert "17420" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["backbone=t5_tiny"], 2, "t5_efficient_tiny"),
        (["backbone=shared"], 2, "no checkpoint"),
        (["optim=adamw"], 2, "nothing to fetch"),
        (["data=etth1", "data.dir=nowhere"], 2, "nowhere"),
        (["--verify", "backbone=linear"], 2, "linear"),
        (["backbone=local", "backbone.path=nowhere"], 2, "nowhere"),
    ],
)
def test_bad_input_is_one_message(arguments, status, word, capsys) -> None:
    assert main(arguments) == status
    assert word in capsys.readouterr().err


def test_offline_without_a_cache_names_the_remedy(hub, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored after --offline has set it
    assert main([*BACKBONE, *places(hub, tmp_path), "--offline"]) == 2
    assert HUB_ID in capsys.readouterr().err
    assert not hub.asked("GET", "")
