"""`train_*.py fit`: LightningCLI with a run folder, resume apart from initialization, and precision by hardware."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from transformers.utils.logging import disable_progress_bar

from liteframe.training.checkpoint import LastCheckpoint
from liteframe.training.checkpoint_folder import AtomicCheckpointIO
from liteframe.training.configs import COMMANDS, run_kind, with_config_files
from liteframe.training.failures import FailureWatch
from liteframe.training.profile_run import StepProfile, shorten, write_profile
from liteframe.training.report import tell
from liteframe.training.resume import (
    RunSettings,
    continued_run,
    own_settings,
    plain_settings,
    refuse_fixed,
    saved_settings,
    with_settings,
)
from liteframe.training.run_folder import Resume, RunFolder
from liteframe.training.schedule import divide_batch
from liteframe.training.sharded import check_strategy, common_end, fewer_devices, torchrun_devices
from liteframe.training.signals import STOP, slurm_plugins

TRAINER_DEFAULTS: dict[str, Any] = {
    "gradient_clip_val": 1.0,
    # The data modules place ranks themselves; Lightning would put a sampler of its own in their place.
    "use_distributed_sampler": False,
    # LastCheckpoint saves.
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    # Validation within a run goes without; the last one would compile all graphs once more.
    "inference_mode": False,
    "enable_model_summary": False,
    "check_val_every_n_epoch": None,
    "val_check_interval": 500,
    "log_every_n_steps": 10,
}


# What Lightning says about things that are as they should be here.
EXPECTED_WARNINGS = (
    ".*module.s. in eval mode at the start of training",  # the teacher
    ".*GPU available but not used",  # accelerator is the user's choice
    ".*does not have many workers",  # workers is the user's choice
    ".*checkpoint that ended before the epoch ended",  # the stream continues from the global step
    ".*is smaller than the logging interval",  # log_every_n_steps counts over epochs
    ".*sync_dist=True",  # held-out figures are synchronized where they are computed
    ".*Total length of `list` across ranks is zero",  # nothing is held out
    ".*isinstance.treespec, LeafSpec.. is deprecated",  # Lightning's own code
    ".*all_gather is deprecated",  # Lightning's own code
    ".*FSDP2-wrapped module .* returned a view tensor",  # nothing changes a prediction in place
    ".*is_gradient_checkpointing. is deprecated",  # PEFT's own code
    ".*gradient_checkpointing_enable. is deprecated",  # transformers 5.17 knows no other name
    ".*args parameter is intended to run from within Python",  # other commands parse a run's settings
)


# Trainer settings that a run decides by other means, and which.
OWNED = {
    "default_root_dir": "--run",
    "logger": "--run (TensorBoard events go there)",
    "accumulate_grad_batches": "--data.batch_size and --data.micro_batch_size",
    "gradient_clip_algorithm": "--trainer.gradient_clip_val, which bounds the norm of all gradients together",
}


PRECISIONS = (None, "32-true", "bf16-mixed")


class TrainingCommand(LightningCLI):
    """Adds `--run`, `--resume` and `checkpoint.*`; only `fit` is offered. Subclasses add their callbacks and report.

    Args:
        module: what trains.
        datamodule: its data.
        arguments: words of the command line; None takes the program's own.
        run: False builds module, data and trainer of one process and stops there: see `load_run`.

    Attributes:
        kind: folder of `configs/` in which `--config NAME` is looked up.
        program: the command's name in its help.
        shardable: whether the module divides its trained weights under `--trainer.strategy fsdp2`.
    """

    kind: str
    program: str
    shardable = False

    def __init__(
        self,
        module: type[LightningModule],
        datamodule: type[LightningDataModule],
        arguments: list[str] | None = None,
        *,
        run: bool = True,
    ):
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        quiet_lightning()
        disable_progress_bar()  # of loading weights; the run's own line is the progress
        self.checkpoint: Path | None = None
        self.settings_as_asked: Any = None
        self.step_profile: StepProfile | None = None
        super().__init__(
            module,
            datamodule,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            save_config_callback=RunSettings,
            parser_kwargs={"prog": self.program},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=self._words(sys.argv[1:] if arguments is None else arguments),
            run=run,
        )

    def _words(self, arguments: Sequence[str]) -> list[str]:
        try:
            return with_config_files(arguments, self.kind)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    @property
    def settings(self) -> Any:
        """What the configuration files and the command line say, by the keys of a YAML."""
        return self.config.get(str(self.subcommand), self.config)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`fit`, without Lightning's own way to name a checkpoint: `--resume` takes the run's."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder and what is kept in it."""
        parser.add_argument("--run", type=str, required=True, help="folder of this run, e.g. runs/first")
        parser.add_argument(
            "--resume",
            type=Resume,
            default=False,
            nargs="?",
            const=True,
            help="continue the run in --run from its newest whole checkpoint, with its own settings where none are "
            "given (docs/resume.md says which may change); auto: continue it if there is a checkpoint and start it if "
            "there is none, for jobs that a cluster starts again. With --resume, a SLURM job that gets SIGTERM or "
            "SIGUSR1 requeues itself",
        )
        parser.add_argument(
            "--profile",
            type=int,
            default=0,
            nargs="?",
            const=20,
            metavar="STEPS",
            help="measure where the time of some steps goes (20 unless told), write RUN/profile.json and a trace in "
            "RUN/profile/, and train nothing",
        )
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; where a run is continued, what neither command line nor configuration files say is the run's own."""
        own = self._own_settings(parser, *continued_run(args))
        self.config = parser.parse_args(with_settings(args, own))
        said = self.config.get(str(self.config.get("subcommand")), self.config)
        # A configuration file may have said which run.
        if self.config.get("subcommand") and own_settings(said.run, said.resume) != own:
            own = self._own_settings(parser, said.run, said.resume)
            self.config = parser.parse_args(with_settings(args, own))
        if said.seed_everything is True:
            parser.error("--seed_everything true would give each process a seed of its own; give a number")

    def _own_settings(self, parser: LightningArgumentParser, run: str, resume: Any) -> Path | None:
        """As own_settings, if the run is one of this command."""
        own = own_settings(run, resume)
        if own is not None and (kind := run_kind(own)) != self.kind:
            parser.error(
                f"--resume: {run} is a run of `liteframe {COMMANDS[kind]} fit`, not of `{self.program} fit`; continue "
                "it with that, or start another run from what it has saved"
            )
        return own

    def before_instantiate_classes(self) -> None:
        """Claim the run folder, and refuse what does not go with it, before anything is loaded or written."""
        config = self.settings
        for key, instead in OWNED.items():
            if config.trainer[key] not in (None, 1, "norm"):
                self._parser(self.subcommand).error(f"--trainer.{key} has no effect here; use {instead}")
        if config.trainer.accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
            self._parser(self.subcommand).error(
                f"--trainer.accelerator {config.trainer.accelerator}: PyTorch finds no GPU here, of which `liteframe "
                "doctor` says more; leave it out to train on the CPU"
            )
        if config.trainer.precision not in PRECISIONS:
            self._parser(self.subcommand).error(
                f"--trainer.precision {config.trainer.precision} would round targets or weights; "
                "use 32-true or bf16-mixed"
            )
        try:
            check_strategy(config.trainer.strategy, shardable=self.shardable)
            if self.subcommand is None:
                self.settings_as_asked = config.clone()
                config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"
            if config.profile:
                self.step_profile = shorten(config)
            if config.profile or self.subcommand is None:
                self.save_config_callback = None
                return
            self.checkpoint = RunFolder(config.run).claim(resume=config.resume)
            self.save_config_kwargs = {"resumed": self.checkpoint is not None}
            if self.checkpoint is not None:
                now = plain_settings(self._parser(self.subcommand), config)
                refuse_fixed(saved_settings(self.checkpoint), now)
        except ValueError as error:
            self._parser(self.subcommand).error(str(error))
        STOP.requeue = bool(config.resume)
        # The saved configuration starts the run; continuing it is asked for each time.
        config.resume = False

    def run_callbacks(self) -> list[Callback]:
        """Callbacks of every run of this kind, called after the configured ones; the progress line comes last."""
        return []

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes to the run folder, in bf16 where the hardware has it."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        run = self._get(self.config_init, "run")
        config.update(
            torchrun_devices() or self._devices_here(config),
            default_root_dir=run,
            logger=TensorBoardLogger(run, name="", version=""),
            plugins=[*(config["plugins"] or []), AtomicCheckpointIO(), *slurm_plugins()],
            precision=config["precision"] or automatic_precision(config["accelerator"]),
        )
        configured = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        callbacks = [FailureWatch(), *configured, *self.run_callbacks()]
        # What the others do at the end of a step belongs to its checkpoint.
        callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))
        if self.step_profile is not None:
            config["profiler"] = self.step_profile.profiler
            # Those that are there for the steps, not for the files.
            callbacks = [callback for callback in configured if not isinstance(callback, LastCheckpoint)]
            callbacks += [callback for callback in self.run_callbacks() if isinstance(callback, ProgressBar)]
            callbacks.append(self.step_profile)
        trainer = self._instantiate_trainer(config, callbacks)
        self._divide_steps(trainer)
        return trainer

    def _devices_here(self, trainer: Mapping[str, Any]) -> dict[str, int]:
        """Fewer devices than the settings name, where there are no more; says so, since gradients are accumulated."""
        data = self.settings.data
        devices = fewer_devices(trainer, data.batch_size, data.micro_batch_size)
        if devices is None:
            return {}
        there = torch.cuda.device_count()
        found = f"{there} GPU{'s' if there > 1 else ''}" if there else "no GPU"
        tell(
            f"trainer.devices is {trainer['devices']}, and there is {found} here: "
            f"{f'{devices} of them take' if devices > 1 else 'it takes' if there else 'the CPU takes'} the whole batch "
            f"of {data.batch_size}, accumulated"
        )
        return {"devices": devices}

    def batches_at_once(self, processes: int) -> int:
        """How many micro-batches so many processes take at the same time."""
        return processes

    def _divide_steps(self, trainer: Trainer) -> None:
        """Set how many micro-batches make a step; Lightning counts them, a run's intervals count steps."""
        data = self.settings.data
        try:
            _, trainer.accumulate_grad_batches = divide_batch(
                data.batch_size, data.micro_batch_size, self.batches_at_once(trainer.world_size)
            )
        except ValueError as error:
            self._parser(self.subcommand).error(str(error))
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval *= trainer.accumulate_grad_batches

    def fit(self, **kwargs: Any) -> None:
        """Train, from the run's checkpoint when resumed."""
        try:
            with common_end(self.trainer):
                self.trainer.fit(ckpt_path=self.checkpoint, **kwargs)
        except BaseException:
            # Most often a setting or a file that will be corrected.
            if self.trainer.is_global_zero and not self.trainer.global_step and self.step_profile is None:
                RunFolder(self.trainer.default_root_dir).forget()
            raise

    def after_fit(self) -> None:
        """Say what was measured, or finish the run."""
        if self.step_profile is None:
            with common_end(self.trainer):
                self._finish_once()
        elif self.trainer.is_global_zero:
            write_profile(self.trainer, self.step_profile, self.settings)

    def finish(self) -> None:
        """What is left to do when training is over and its result is saved."""

    def save_result(self) -> None:
        """What the callbacks save when training ends."""

    def _finish_once(self) -> None:
        if not self.trainer.callback_metrics:  # no step was left to do
            if RunFolder(self.trainer.default_root_dir).reported(self.trainer.global_step):
                print(f"{self.trainer.global_step} steps are done already; --trainer.max_steps takes the run further")
                return
            # The run was ended between its last step and its report.
            self.save_result()
        self.finish()


class Run(NamedTuple):
    """What a command line describes, built in one process and not begun.

    Attributes:
        module: what would train; nothing is loaded yet.
        data: its data module; no list is read yet.
        trainer: of one process, or of those that torchrun has started.
        settings: as the command line has them, by the keys of a YAML.
    """

    module: Any
    data: Any
    trainer: Trainer
    settings: Any


def load_run(kind: Callable[..., TrainingCommand], arguments: Sequence[str]) -> Run:
    """Build a run without claiming its folder or training.

    Args:
        kind: CTDCommand or LMACommand.
        arguments: what would follow `fit`, such as ["--config", "configs/ctd/toy.yaml", "--data.videos", "videos"].
    """
    command = kind(list(arguments), run=False)
    return Run(command.model, command.datamodule, command.trainer, command.settings_as_asked)


def quiet_lightning() -> None:
    """Leave out what Lightning says of itself, but for its warnings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def automatic_precision(accelerator: Any) -> str:
    """bf16 mixed precision on CUDA devices that have bf16, float32 elsewhere."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
