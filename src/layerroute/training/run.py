"""One training run from a recipe to its record: prepare, train, finish."""

import json
import shutil
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from layerroute.errors import UserError, require
from layerroute.evaluation.executed import executed_flops_per_token
from layerroute.evaluation.perplexity import Evaluation
from layerroute.evaluation.token_routes import collect_token_routes, token_counts
from layerroute.folders import recover_folder, replace_folder
from layerroute.integrity import clear_asides, replace_text
from layerroute.precision import choose_device, choose_precision
from layerroute.recipe import Recipe
from layerroute.recipe.yaml_reader import dump
from layerroute.training.arguments import check_arguments, training_arguments
from layerroute.training.callbacks import RunCallback
from layerroute.training.checkpoint import clear_leftovers, newest_checkpoint, set_aside
from layerroute.training.curves import CurvesCallback
from layerroute.training.disk import disk_errors, only_tensors
from layerroute.training.errors import TrainingFailed
from layerroute.training.hybrid import HybridTrainee, resolved_recipe
from layerroute.training.parallel import (
    check_engine,
    described_processes,
    is_main,
    lost_processes,
    of_the_first,
    refuse_deepspeed,
)
from layerroute.training.progress import ProgressCallback
from layerroute.training.recipe_checks import check_recipe
from layerroute.training.routing_schedule import trained_rate
from layerroute.training.run_directory import RunDirectory, Start, find_start, recipe_fingerprint, seen_start
from layerroute.training.run_record import RunRecord
from layerroute.training.signals import Interrupted, Interruption
from layerroute.training.trainee import Trainee
from layerroute.training.trainer import RoutedTrainer, check_trainer_state

SITES_IN_WORDS = 6
"""Rates of so many sites are printed one by one at the end of a run."""


def make_trainee(recipe: Recipe) -> Trainee:
    """What the recipe's capability trains.

    Raises:
        UserError: its sections do not fit each other.
    """
    check_recipe(recipe)
    if recipe.capability == "layer_skipping":
        from layerroute.training.skipping.trainee import SkippingTrainee

        return SkippingTrainee(recipe)
    return HybridTrainee(recipe)


def default_out(recipe: Recipe) -> Path:
    """``runs/<name>-seed<seed>`` under the working directory."""
    return Path("runs") / f"{recipe.name}-seed{recipe.seed}"


def train_recipe(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: str = "auto",
    command: str = "layerroute train",
    console: Console | None = None,
) -> int:
    """Train the model of a recipe, or go on where it was left, and write its record.

    Args:
        out: folder of the run; default ``default_out``.
        resume: ``auto``, ``never`` or the path of a checkpoint; see ``find_start``.

    Returns:
        The exit code: 0 completed (now or earlier), 1 failed (the record says why), 130 or 143 interrupted by SIGINT
        or SIGTERM with a checkpoint saved.

    Raises:
        UserError: for input that cannot be used; nothing of an earlier run is touched then.
    """
    require("accelerate", extra="train")
    refuse_deepspeed()
    logging.disable_progress_bar()  # one for each saved file would cross ours
    console = console or Console(highlight=False, markup=False, soft_wrap=True)
    directory = RunDirectory(out or default_out(recipe))
    trainee = make_trainee(recipe)
    plain = resolved_recipe(recipe)
    # The first process decides for all (``prepare``); the others only see whether there is anything to do.
    decide = (
        partial(find_start, directory, plain, resume) if is_main() else partial(seen_start, directory, plain)
    )
    decide()  # before anything is written
    with directory.locked() if is_main() else nullcontext(), Interruption() as interruption:
        start = decide()
        if start.kind == "completed":
            console.print(f"{directory.path} holds this run already, completed; nothing to do.")
            return 0
        run = _Run(trainee, plain, directory, start, interruption, command, console)
        try:
            run.prepare()
            with disk_errors(directory, run.last_state), lost_processes(run.last_state):
                run.train()
                run.finish()
        except Interrupted as signal:
            run.end("interrupted", f"interrupted by {signal}")
            run._tell(f"Interrupted. The same command goes on from {run.last_state()}.")
            return signal.exit_code
        except TrainingFailed as error:
            run.end("failed", str(error))
            print(f"layerroute: {error}", file=sys.stderr)
            return 1
        except BaseException as error:
            run.end("failed", f"{type(error).__name__}: {error}")
            raise
    return 0


class _Run:
    """The parts of one run, made in ``prepare``."""

    record: RunRecord | None = None
    trainer: RoutedTrainer

    def __init__(
        self,
        trainee: Trainee,
        plain: dict[str, Any],
        directory: RunDirectory,
        start: Start,
        interruption: Interruption,
        command: str,
        console: Console,
    ) -> None:
        self.trainee, self.recipe = trainee, trainee.recipe
        self.plain, self.directory, self.start = plain, directory, start
        self.interruption, self.command, self.console = interruption, command, console
        self.curves = CurvesCallback(directory.curves)
        self.progress = ProgressCallback(console)

    def prepare(self) -> None:
        """Data, model and trainer; prints the summary. Nothing is written to the run's folder before all is well."""
        recipe, train, trainee = self.recipe, self.recipe.train, self.trainee
        check_arguments(train)  # before anything is read, which may take hours
        self.device = choose_device(train.device)
        self.precision = choose_precision(train.precision, self.device)
        trainee.read(progress=self.console.is_terminal and is_main())
        windows, self.validation = trainee.windows(), trainee.validation()
        arguments = training_arguments(
            train,
            name=f"{recipe.name}-seed{recipe.seed}",
            folder=self.directory.checkpoints,
            device=self.device,
            seed=recipe.seed,
        )
        self.start = of_the_first(self.start)  # making the arguments has connected the processes
        self._check_same_data()
        trainee.build(device=self.device, precision=self.precision, tell=self._tell)
        self._tell(f"run         {recipe.name}, seed {recipe.seed} → {self.directory.path}")
        self._tell("\n".join(trainee.describe(arguments.per_device_train_batch_size)))
        self._claim_directory()
        self.trainer = RoutedTrainer(
            trainee,
            arguments=arguments,
            windows=windows,
            validation=self.validation,
            fingerprint=recipe_fingerprint(self.plain),
        )
        check_engine(self.trainer)
        if self.record is not None:
            self.record.update({"processes": described_processes(self.trainer)})
        self._add_callbacks()

    def train(self) -> None:
        """The training loop, from the start or from a checkpoint."""
        checkpoint = self.start.checkpoint
        if self.start.note and is_main():
            print(f"layerroute: {self.start.note}", file=sys.stderr)
        if checkpoint is not None:
            self._tell(f"Going on from {checkpoint}")
            with only_tensors(str(checkpoint)):
                check_trainer_state(checkpoint)
        try:
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            self.curves.close()
            self.progress.close()
        if self.interruption.signal_number is not None:
            raise Interrupted(self.interruption.signal_number)

    def finish(self) -> None:
        """Save the last model, and complete the record."""
        trainer, state = self.trainer, self.trainer.state
        if trainer.evaluation is None:  # the run was cut off after its last checkpoint
            trainer.evaluate()
        evaluation = trainer.evaluation
        assert evaluation is not None
        trainer.gather()  # what follows is the work of one process, on a whole model
        if not is_main():
            return
        self.directory.check_there()
        replace_folder(self.directory.last, self.trainee.write)
        executed = executed_flops_per_token(
            self.trainee.model, self.validation[0], precision=self.trainee.in_precision
        )
        routing = evaluation.routing
        train_points = [point["lm_loss"] for point in state.log_history if "lm_loss" in point]
        assert self.record is not None
        self.record.update(
            {
                "metrics": {
                    "validation_loss": evaluation.loss,
                    "validation_perplexity": evaluation.perplexity,
                    "validation_accuracy": evaluation.accuracy,
                    "best_validation_loss": state.best_metric,
                    "best_step": state.best_global_step,
                    "train_loss": train_points[-1],
                    "bigram_loss": self.trainee.bigram_loss(),
                    "steps": state.global_step,
                },
                "validation": {
                    "window_losses": [round(loss, 6) for loss in evaluation.window_losses],
                    "by_position": evaluation.by_position,
                },
                "routing": None
                if routing is None
                else {
                    **self.trainee.routing_section(routing),
                    "trained_rate": trained_rate(state.log_history),
                },
                "flops": self.trainee.flops_section(routing, executed),
                "timing": {
                    "train_seconds": trainer.meter.seconds,
                    "tokens_per_second": trainer.meter.tokens / trainer.meter.seconds,
                    "evaluation_seconds": evaluation.seconds,
                },
                "tokens_seen": trainer.meter.tokens,
                "token_routes": self._write_token_routes(),
                **self.trainee.measure(),
            }
        )
        self.record.finish("completed")
        self._print_result(evaluation)

    def end(self, status: str, error: str) -> None:
        """Record an end before the end, as far as the disk lets us."""
        if self.record is not None and is_main():
            with suppress(OSError):
                self.directory.check_there()
                self.record.finish(status, error)

    def last_state(self) -> str:
        """The checkpoint from which the run can go on, in words."""
        newest = newest_checkpoint(self.directory.checkpoints)
        return str(newest) if newest else "its first step: no checkpoint was saved yet"

    def _check_same_data(self) -> None:
        earlier = ((self.start.record or {}).get("data") or {}).get("fingerprint")
        if earlier is not None and earlier != self.trainee.data.fingerprint:
            raise UserError(
                f"--out: {self.directory.path} was begun on other data (fingerprint {earlier[:12]}, now "
                f"{self.trainee.data.fingerprint[:12]}): the source has changed; give another --out"
            )

    def _claim_directory(self) -> None:
        if not is_main():
            return
        for saved in (self.directory.best, self.directory.last):
            recover_folder(saved)
        checkpoint = self.start.checkpoint
        if checkpoint is not None and checkpoint.resolve().parent != self.directory.checkpoints.resolve():
            _bring_along(checkpoint.resolve().parents[1], self.directory)
        clear_leftovers(self.directory.checkpoints)
        clear_asides(self.directory.path)
        for damaged, _ in self.start.damaged:
            set_aside(damaged)
        self.record = RunRecord(
            self.directory.path,
            self.plain,
            command=self.command,
            earlier=self.start.record,
            note=self.start.note,
            step=self.start.step,
        )
        self.record.update({**self.trainee.static_sections(), "precision": self.precision.name})
        replace_text(self.directory.recipe, dump(self.plain))

    def _add_callbacks(self) -> None:
        trainer = self.trainer
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self.curves)
        trainer.add_callback(self.progress)
        trainer.add_callback(
            RunCallback(
                self.directory,
                self.interruption,
                seed=self.recipe.seed,
                save_best=trainer.save_whole,
                update=None if self.record is None else self.record.update,
            )
        )
        if self.record is None:
            return
        if "tensorboard" in self.recipe.train.report_to:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(log_dir=str(self.directory.tensorboard))
            trainer.add_callback(TensorBoardCallback(writer))

    def _write_token_routes(self) -> str | None:
        count = self.recipe.train.route_sentences
        if count == 0:
            return None
        windows = torch.cat([batch["input_ids"] for batch in self.validation])
        train = getattr(self.trainee.data, "train", None)  # generated data have none
        seen = None if train is None else token_counts(train.tokens, int(windows.max()) + 1)
        routes = collect_token_routes(
            self.trainee.model,
            self.trainee.tokenizer,
            windows,
            count=count,
            seen=seen,
            precision=self.trainee.in_precision,
        )
        if routes is None:
            return None
        path = self.directory.token_routes
        replace_text(path, json.dumps(routes, ensure_ascii=False))
        return path.name

    def _tell(self, line: str) -> None:
        if is_main():
            self.console.print(line)

    def _print_result(self, evaluation: Evaluation) -> None:
        assert self.record is not None
        metrics, timing = self.record.content["metrics"], self.record.content["timing"]
        bigram = metrics["bigram_loss"]
        floor = "" if bigram is None else f"; bigram model {bigram:.4f}"
        text = (
            f"completed   validation loss {evaluation.loss:.4f} (perplexity {evaluation.perplexity:.2f}, accuracy "
            f"{evaluation.accuracy:.1%}; best {metrics['best_validation_loss']:.4f} "
            f"at step {metrics['best_step']}{floor}), "
            f"{timing['train_seconds']:.1f} s of training, "
            f"{timing['tokens_per_second']:,.0f} tokens/s"
        )
        if evaluation.routing is not None:
            by_site = evaluation.routing.rate
            rates = f"{evaluation.routing.mean_rate:.1%} on average"
            if len(by_site) <= SITES_IN_WORDS:
                rates = ", ".join(f"{site} {rate:.1%}" for site, rate in by_site.items())
            text += f"\n{evaluation.routing.paths[-1]:<12}{rates}"
        self.console.print(text)


def _bring_along(source: Path, directory: RunDirectory) -> None:
    """Copy the curve and the best model of the run that a foreign checkpoint comes from."""
    other = RunDirectory(source)
    if other.curves.is_file():
        shutil.copyfile(other.curves, directory.curves)
    if other.best.is_dir() and not directory.best.exists():
        shutil.copytree(other.best, directory.best)
