"""Nonsensical command lines, and the real entry point to run them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig

from t5ts import run

#: A command line (split at blanks), and what its message must name.
HOSTILE = [
    # unknown keys, with Hydra's prefixes too
    ("+optim.learning_rate=5", "optim.lr"),
    ("optim.learning_rate=5", "optim.lr"),
    ("learning_rate=5", "optim.lr"),
    ("+optimizer=sgd", "optim"),
    ("lr=5", "optim.lr"),
    ("optim.lrr=1", "optim.lrr"),
    ("+train.epoch=5", "train.epochs"),
    ("+a.b.c=1", "a.b.c"),
    ("++seed.x=1", "seed.x"),
    ("backbone.path.x=1", "backbone.path"),
    ("+optim={learning_rate:5}", "optim"),
    ("+optim@other=adamw", "optim"),
    ("--multirun +optim.learning_rate=1,2", "optim.lr"),
    ("--multirun hydra/sweeper=t5ts +optim.learning_rate=1,2", "optim.lr"),
    ("--multirun experiment=unfreeze_grid +optimizer=sgd", "optim"),
    ("freeze.=1", "freeze"),
    # what a run cannot do without, removed
    ("~seed", "seed"),
    ("~backbone", "backbone"),
    ("~optim.lr", "optim.lr"),
    ("~nothing", "nothing"),
    ("--multirun ~seed init=random,t5", "seed"),
    ("~hydra", "hydra"),
    ("~hydra.run", "hydra"),
    # what Hydra's grammar or OmegaConf cannot read
    ("=3", "=3"),
    ("seed", "seed"),
    ("seed=${nope}", "nope"),
    ("data.name=${nope:1}", "nope"),
    ("optim.lr=${data.name}", "optim.lr"),
    ("horizon=${oc.env:T5TS_NOPE}", "T5TS_NOPE"),
    ("seed=${", "seed"),
    ("backbone=${nope}", "nope"),
    ("backbone.path=~/t5", "backbone.path"),
    ("data=csv data.path=~/x.csv", "data.path"),
    ("seed=[1", "seed"),
    ("seed='1", "seed"),
    ("seed=int(", "seed"),
    ("seed=1,2", "seed"),
    ("optim.lr=interval(1e-4,1e-2)", "optim.lr"),
    ("--multirun seed=int(interval(1,3))", "hydra/sweeper=t5ts"),
    ("seed=???", "seed"),
    ("data=csv data.path=???", "data.path"),
    ("data=csv", "data.path"),
    ("[]", "[]"),
    ("été=1", "été"),
    ("data=synthetic +data.path=x", "data=csv"),
    ("freeze=all freeze.always=[layer_norm]", "freeze=norms, staged_norms"),
    ("backbone=linear backbone.stem=false", "backbone=patchtst, shared"),
    ("data@ood=etth1 ood.path=x", "ood=csv"),
    ("experiment=demo data=etth1", "data=csv, nyc_weather"),
    *((f"backbone={b} init.{k}=x", f"init.{k}") for b in ("linear", "shared")
      for k in ("path", "checkpoint")),
    ("ood.num_rows=5", "data@ood"),
    ("experiment=transfer_ood ~data@ood +ood.path=x", "data@ood"),
    ("--multirun hydra/sweeper=t5ts experiment=demo ood.seed=range(1,3)", "data@ood"),
    # wrong types
    ("seed=1.5", "seed"),
    ("seed=", "seed"),
    ("seed=[1,2]", "seed"),
    ("optim.lr=fast", "optim.lr"),
    ("freeze=staged freeze.always=[layer_norm]", "freeze=norms, staged_norms"),
    ("freeze=norms freeze.always=layer_norm", "freeze.always"),
    ("arm_requires=[init=t5]", "arm_requires"),
    ("backbone.path=[a,b]", "backbone.path"),
    ("optim=null", "optim"),
    ("backbone=[t5_small,linear]", "backbone"),
    ("backbone=0", "t5_small"),
    ("data=../x", "data"),
    ("experiment=nope", "experiment"),
    # Hydra's own settings
    ("hydra.run.dir=/proc/x", "hydra.run.dir"),
    ("hydra.run.dir=", "hydra.run.dir"),
    ("hydra.run.dir=${nope}", "nope"),
    ("hydra.run.dir=" + "x" * 300, "hydra.run.dir"),
    ("--multirun seed=0,1 hydra.sweep.dir=/proc/x", "hydra.sweep.dir"),
    ("--multirun seed=0,1 hydra.sweep.dir=", "hydra.sweep.dir"),
    ("hydra.nope=1", "hydra.nope"),
    ("hydra.job_logging.handlers.console.class=none", "console"),
    ("~hydra.callbacks.check", "hydra.callbacks.check"),
    ("hydra.callbacks={}", "hydra.callbacks"),
    ("hydra.job.chdir=maybe", "chdir"),
    ("hydra/launcher=nope", "nope"),
    ("--multirun hydra/sweeper=nope seed=1,2", "nope"),
    ("hydra.mode=nope", "mode"),
    ("--multirun hydra.launcher._target_=nope seed=0,1", "nope"),
    ("--run --multirun seed=0,1", "multirun"),
    ("--resolve", "resolve"),
    ("--config-name nope", "nope"),
    ("--config-dir nope", "nope"),
    ("--cfg nope", "nope"),
    ("--nope", "nope"),
    ("--cfg job --resolve seed=${nope}", "nope"),
    ("--cfg job +optimizer=sgd", "optim"),
    ("--multirun hydra.sweeper.max_batch_size=0 seed=0,1", "max_batch_size"),
    ("--multirun hydra/sweeper=t5ts hydra/sweeper/sampler=nope seed=0,1", "nope"),
    ("--multirun init=nope,t5", "init"),
    ("--multirun optim.lr=nan", "optim.lr"),
    ("--multirun seed=0,1 train.epochs=0", "train.epochs"),
    ("--multirun seed=0,1 optim.lr=interval(1e-4,1e-2)", "hydra/sweeper=t5ts"),
    ("--multirun optim.lr=1e-3,0.001", "optim.lr"),
    # lists in lists, and grids of no job or of too many
    ("freeze=norms freeze.always=[[a]]", "freeze.always"),
    ("data=csv data.path=x data.nulls=[[1]]", "data.nulls"),
    ("--multirun seed=range(0,1000000000)", "seed"),
    ("--multirun seed=range(0,1000000)", "seed"),
    ("--multirun seed=range(0,1000) init=t5,random horizon=range(1,1000)", "horizon"),
    ("--multirun seed=range(5,0)", "seed"),
    ("--multirun seed=range(3,3)", "seed"),
    ("--multirun init=glob(nope*)", "init"),
    ("--multirun seed=glob(*)", "seed"),
    ("--multirun optim.lr=[1,2],3", "optim.lr"),
]  # fmt: skip

#: Values that are refused together: every key must be named in the one message.
TOGETHER = [
    "seed=-1 seq_len=0 optim.lr=nan optim.eps=inf optim.weight_decay=inf optim.clip_norm=inf"
    " optim.beta2=nan optim.warmup_epochs=inf optim.encoder_lr_scale=inf init.factor=inf",
    "seed=999999999999999999999 seq_len=99999999999999999999 horizon=99999999999999999999"
    " optim.lr=inf optim.eps=1e9 train.batch_size=99999999999999999999"
    " train.epochs=99999999999 train.threads=1000000000",
    "optim.lr=1e309 optim.clip_norm=0 optim.weight_decay=-1 optim.beta1=1 optim.layer_decay=0"
    " optim.min_lr_ratio=nan optim.warmup_epochs=nan data.fraction=nan data.windows_per_epoch=0",
    "optim.lr=-1 backbone.dropout=nan backbone.num_layers=0 backbone.num_heads=0 backbone.d_kv=0"
    " backbone.d_model=-4 backbone.d_ff=0 backbone.vocab_size=-5 backbone.embedding_rms=nan"
    " backbone.feed_forward_proj=gelu backbone.revision= backbone.hub_id=",
    "train.checkpoint_every_s=nan train.reuse_max_gb=inf train.threads=0 train.log_every=0"
    " train.probe_every=-1 train.eval_every_epochs=0 train.precision=fp8 train.device=tpu"
    " train.resume= train.reuse_dir= train.grad_accumulation=0 debug.overfit_windows=0",
    "data=synthetic data.ar=[nan] data.trend=inf data.noise_std=inf data.walk_std=-1"
    " data.season_amplitude=nan data.num_rows=99999999999999999 data.num_channels=0 data.season=0"
    " data.seed=-1 data.splits=[nan,0.1,0.2]",
    "data@ood=synthetic ood.ar=[inf] ood.noise_std=nan ood.name=a/b",
    "freeze=staged freeze.epochs_per_stage=inf freeze.unfreeze_epoch=nan freeze.order=sideways"
    " freeze.rewarmup_epochs=inf freeze.blocks_per_stage=0 freeze.name=other patch.scale=big"
    " patch.channels=all patch.patch_len=0 patch.stride=0 normalize.name=batch",
    "freeze=norms freeze.always=['('] data.name=../../x backbone.name=../x init.name=..",
    "freeze=norms freeze.always=[''] data.name=/etc/x tracker.project=a/b tracker.group=../x",
    "freeze=norms freeze.always=['.*'] data.name= tracker.project= tracker.entity=a/b"
    " tracker.tags=[''] tracker.mode=on objective=loss optim.schedule=linear optim.algorithm=sgd",
    "data._target_=os.system data.name=.. data.stations=[''] patch.name=",
    "data._target_=t5ts.data.sources.load_csv data.name=a/b task.name=..",
    "data=csv data.path= data.time= data.id= data.season=0 data.name=a\\b",
    "task=reconstruct task.ratio=nan task.min_len=0 task.max_len=999999999 task.mask=all",
    "backbone=shared backbone.num_layers=0 backbone.num_heads=0 backbone.d_model=1",
    # pairs
    "optim.warmup_epochs=11 freeze.rewarmup_epochs=1000",
    "backbone=shared backbone.d_model=130",
    "backbone=shared backbone.d_model=15 backbone.num_heads=3",
    "freeze=staged freeze.unfreeze_epoch=10",
    "backbone=local backbone.path=",
]


@dataclass
class Outcome:
    """How a command line ended.

    Attributes:
        status: The exit status; None if an exception reached Python, which prints a traceback.
        said: The text on stderr.
        trained: How many runs began.
        left: Files that it left behind.
    """

    status: int | None
    said: str
    trained: int
    left: list[Path]

    def fault(self, *named: str) -> str | None:
        """What is wrong with this response to a nonsensical command; None if nothing is."""
        if self.status is None or "Traceback" in self.said:
            return f"traceback: {self.said[-300:]}"
        if self.trained or self.status == 0:
            return "accepted"
        if self.status != 2 or not all(key in self.said for key in named):
            return f"status {self.status}, {named} are not all named: {self.said}"
        if self.left:
            return f"left behind: {self.left}"
        if self.said.count("t5ts: ") != 1 and "usage: " not in self.said:
            return f"not one message: {self.said}"
        return None


@contextmanager
def entered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Runs count as trained when they would begin: nothing imports torch."""
    begun: list[object] = []

    def begin(config: object, **_how: object) -> SimpleNamespace:
        begun.append(config)
        return SimpleNamespace(
            objective=0.0, objective_name="val_loss", arm="arm", seed=0, seconds=0.0,
            baselines={"val": {}}, metrics={"val_loss": 0.0},
        )  # fmt: skip

    experiment = ModuleType("t5ts.experiment")
    experiment.run = begin
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "t5ts.experiment", experiment)
        # It composes everything once more to read hydra.mode, and ignores all errors.
        patch.setattr(Hydra, "get_mode", lambda *_args, **_kwargs: None)
        yield begun


def outcome(
    arguments: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Outcome:
    """Call the entry point of `python -m t5ts.run` as a process would, in an empty folder."""
    folder.mkdir(exist_ok=True)
    capsys.readouterr()
    with monkeypatch.context() as patch, entered(monkeypatch) as begun:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["run.py", *arguments])
        status: int | None = 0
        try:
            run.cli()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0
        except Exception as error:
            status = None
            print(repr(error), file=sys.stderr)
        finally:  # Hydra leaves the last job's config behind, for whatever test comes next
            HydraConfig.instance().cfg = None
    left = [] if begun else list(folder.rglob("*"))
    captured = capsys.readouterr()
    return Outcome(status, captured.err + captured.out, len(begun), left)
