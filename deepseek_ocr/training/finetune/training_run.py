"""A training run: network, data and optimiser brought together, epoch by epoch."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object, set_seed
from peft import PeftModel

from deepseek_ocr import presets
from deepseek_ocr.console import one_line
from deepseek_ocr.devices import selection
from deepseek_ocr.documents.run_store import checkpoint_digest, file_digest
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import DeviceError, InputError, OcrError, SettingsError
from deepseek_ocr.files import replace_folder
from deepseek_ocr.model.adapters import merge_adapter
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.prompts import codec_of
from deepseek_ocr.progress import track
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.training.data import dataset
from deepseek_ocr.training.data.samples import Example, Rejection, write_rejections
from deepseek_ocr.training.evaluation import text_metrics
from deepseek_ocr.training.evaluation.scoring import comparable
from deepseek_ocr.training.experiment_log import ExperimentLog
from deepseek_ocr.training.finetune import lora, run_state
from deepseek_ocr.training.finetune.loss_curve import write_curve
from deepseek_ocr.training.finetune.objective import Objective, route_in_float32
from deepseek_ocr.training.finetune.optimizer import Stepper, StepResult, cosine
from deepseek_ocr.training.finetune.saved_checkpoints import save_checkpoint, stored_dtype
from deepseek_ocr.training.finetune.train_options import TrainOptions


class TrainingRun:
    """Everything a run holds: the checkpoint `source`, what is to be trained in it trainable, and
    where an earlier run stopped if it is to go on. Raises `CheckpointError`, `DeviceError`,
    `SettingsError` and `FileWriteError`."""

    def __init__(self, options: TrainOptions, source: Path) -> None:
        self.options, self.source = options, source
        self.accelerator, dtype = _accelerator(options)
        set_seed(options.seed)
        device = self.accelerator.device
        self.network, self.adapted = _trainable_network(options, source, device, dtype)
        config = read_config(source)
        text = config.text_config
        self.codec = codec_of(source, config)
        pad = text.pad_token_id if text.pad_token_id is not None else min(self.codec.end_ids)
        longest = min(options.max_tokens, text.max_position_embeddings)
        crop = presets.crop_for(options.resolution)
        self.encoding = dataset.Encoding(self.codec, crop, longest, pad)
        objective = Objective(self.network, options.balance > 0)
        decay, balance = options.weight_decay, options.balance
        self.stepper = Stepper(objective, self.accelerator, weight_decay=decay, balance=balance)
        self.log = ExperimentLog(options.output_dir)
        fixed = _fixed(options, source, dtype, self.accelerator.num_processes)
        self.progress = run_state.TrainingProgress(fixed)
        self._begin(dtype)

    def _begin(self, dtype: torch.dtype) -> None:
        if self.options.resume:
            now = self.progress.settings
            self.progress = run_state.read_progress(self.options.output_dir)
            self._check_same(now)
            run_state.restore(self.options.output_dir, self.network, self.stepper.optimisers[0])
            if self.progress.scaler and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if not self.accelerator.is_main_process:
            return
        self.log.start("training.train", asdict(self.options) | {"source": self.source})
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.network.parameters())
        self.log.line(
            f"device {self.accelerator.device}, {self.accelerator.num_processes} processes, "
            f"computing in {dtype}, {trained:,} of {total:,} weights are trained"
        )
        if self.options.resume:
            self.log.line(f"resumed after epoch {self.progress.epoch}")

    def _check_same(self, now: dict[str, object]) -> None:
        """Note what must be the same when a run goes on; raises `SettingsError` if it is not."""
        stored = self.progress.settings
        changed = [name for name, value in now.items() if stored.get(name, value) != value]
        if changed:
            listed = ", ".join(f"{name} was {one_line(stored[name])}" for name in changed)
            raise SettingsError(
                f"A run goes on with the settings, the checkpoint and the pages it began with: "
                f"{listed}; bring them back, or choose another --output_dir."
            )
        stored |= now

    # --- data -------------------------------------------------------------------------------------

    def checked(self, examples: list[Example]) -> tuple[list[Example], list[Rejection]]:
        """The examples that open and fit, and the pages of those that do not, each once for a
        reason; every process gets the same."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        numbers = range(rank, len(examples), world)
        mine = [examples[number] for number in numbers]
        outcomes = dataset.check(mine, self.encoding, self.options.workers)
        found = list(zip(numbers, track(outcomes, len(mine), "checking"), strict=True))
        reasons: dict[int, Rejection | None] = dict(gather_object(found) if world > 1 else found)
        good = [example for number, example in enumerate(examples) if reasons[number] is None]
        rejected = [reasons[number] for number in range(len(examples))]
        return good, list(dict.fromkeys(reason for reason in rejected if reason is not None))

    def report_rejections(
        self, rejections: list[Rejection], usable: int, entries: int, unread: list[Rejection]
    ) -> None:
        """Name what cannot be used in `rejected.json` and the log, `unread` of the validation file;
        stop if it is too many of the `entries` to train on the `usable` examples of the rest.
        Raises `InputError`."""
        if self.accelerator.is_main_process:
            write_rejections(self.options.output_dir, {"train": rejections, "validation": unread})
            self.log.line(f"data: {usable} examples, {len(rejections)} rejected")
            self.log.line(f"validation: {len(unread)} rejected")
            for rejection in (*rejections, *unread):
                self.log.line(f"rejected {rejection.name}: {rejection.reason}")
            rejected = f"{len(rejections)} entries rejected (rejected.json)."
            print(f"{usable} examples to train on, {rejected}")
            if unread:
                print(f"{len(unread)} entries of --val_file rejected (rejected.json).")
        share = len({rejection.name for rejection in rejections}) / max(1, entries)
        if share > self.options.max_rejected or not usable:
            first = rejections[0]
            raise InputError(
                f"{share:.0%} of the samples cannot be used (first: {first.name}: {first.reason}); "
                "mend them (rejected.json names each) or raise --max_rejected."
            )

    # --- training ---------------------------------------------------------------------------------

    def train(self, examples: Sequence[Example], validation: Sequence[Example]) -> None:
        """Train all epochs that are left; a checkpoint, CER and state after each."""
        options, world = self.options, self.accelerator.num_processes
        if self.accelerator.is_main_process:
            self.log.line(f"validation: {len(validation)} examples")
        self._check_same({"examples": _digest_of(examples)})
        per_epoch = -(-len(examples) // (options.batch_size * options.grad_accum * world))
        total = per_epoch * options.epochs
        shares = cosine(int(total * options.warmup), total)
        while self.progress.epoch < options.epochs:
            epoch = self.progress.epoch + 1
            start = time.monotonic()
            # What is drawn at random follows from the epoch, so a resumed run draws the same.
            torch.manual_seed(_seed_of(options.seed, epoch, self.accelerator.process_index))
            plan = dataset.plan_epoch(
                len(examples), options.seed, epoch, options.batch_size, options.grad_accum, world
            )
            for result in track(self._steps(examples, plan, shares), len(plan), f"epoch {epoch}"):
                self._note(result)
            self.progress.epoch = epoch
            self._finish_epoch(validation, time.monotonic() - start)
        if options.merge and self.accelerator.is_main_process:
            self._merge()
        self.accelerator.wait_for_everyone()

    def _steps(self, examples: Sequence[Example], plan: Any, shares: Any) -> Iterator[StepResult]:
        rank = self.accelerator.process_index
        mine = [micro for step in plan for micro in step[rank]]
        make = partial(dataset.batch_of, examples, self.encoding)
        batches = dataset.in_order(dataset.loader(mine, make, self.options.workers))
        self.network.train()
        for step in plan:
            taken = [next(batches).to(self.accelerator.device) for _ in step[rank]]
            yield self.stepper.step(taken, self.options.lr * shares(self.progress.step))

    def _note(self, result: StepResult) -> None:
        self.progress.step += 1
        self.progress.losses.append(result.loss)
        if self.accelerator.is_main_process:
            self.log.line(
                f"step {self.progress.step} loss {result.loss:.6f} tokens {result.tokens} "
                f"gradient norm {result.gradient_norm:.4f} lr {result.lr:.3e}"
            )

    def _finish_epoch(self, validation: Sequence[Example], seconds: float) -> None:
        epoch, progress = self.progress.epoch, self.progress
        folder = self.options.output_dir
        if self.accelerator.is_main_process:
            self._save(folder / f"epoch-{epoch}")
        entry: dict[str, float] = {"epoch": epoch, "step": progress.step}
        if validation:
            rate, failed = self._validate(validation)
            entry |= {"cer": rate, "failed": failed}
            best = min((past["cer"] for past in progress.validation), default=float("inf"))
            progress.best = epoch if rate < best else progress.best
        else:
            progress.best = epoch
        progress.validation.append(entry)
        if self.accelerator.scaler is not None:
            progress.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            told = f", CER on validation {entry['cer']:.4f}" if validation else ""
            if unread := entry.get("failed"):
                told += f", {unread:.0f} of {len(validation)} could not be read (in the log)"
            self.log.line(f"epoch {epoch} took {seconds:.1f} s{told}")
            print(f"epoch {epoch} of {self.options.epochs}: {seconds:.0f} s{told}", flush=True)
            if progress.best == epoch:
                link_folder(folder / f"epoch-{epoch}", folder / "best")
            run_state.save_state(folder, progress, self.network, self.stepper.optimisers[0])
            write_curve(folder / "loss.png", progress.losses, progress.validation)
            if epoch > self.options.keep:
                shutil.rmtree(folder / f"epoch-{epoch - self.options.keep}", ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _validate(self, validation: Sequence[Example]) -> tuple[float, int]:
        """CER over all validation examples, each process reading its share, of what `deepseek-ocr
        evaluate` would compare; and how many failed, which count as empty answers."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        network, within = self.network.eval(), self.accelerator.autocast
        with closing(OcrEngine(network, self.codec, slots=1, within=within)) as engine:
            pairs = [self._read(engine, example) for example in validation[rank::world]]
        everyone: list[tuple[str, str | None]] = gather_object(pairs) if world > 1 else pairs
        references, answers = zip(*everyone, strict=True)
        rate = text_metrics.character_error_rate(references, [one or "" for one in answers])
        return rate, answers.count(None)

    def _read(self, engine: OcrEngine, example: Example) -> tuple[str, str | None]:
        longest = len(self.codec.encode_text(example.answer)) * 2 + 32
        decode = DecodeSettings(max_new_tokens=longest)
        short = presets.task_name(example.task)
        try:
            reading = engine.read(example.image, example.prompt, self.encoding.crop, decode)
        except OcrError as error:
            self.log.line(f"validation page {example.name} failed: {error}")
            return comparable(example.answer, short), None
        return comparable(example.answer, short), comparable(reading.text, short)

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self, folder: Path) -> None:
        if self.adapted is not None:
            lora.save_adapter(self.adapted, folder)
        else:
            save_checkpoint(self.network, self.source, folder, stored_dtype(self.source))

    def _merge(self) -> None:
        best = self.options.output_dir / "best"
        merged = merge_adapter(load_network(self.source, "cpu", torch.float32), best)
        folder = self.options.output_dir / "merged"
        save_checkpoint(merged, self.source, folder, stored_dtype(self.source))
        self.log.line("merged best/ into merged/")


def link_folder(source: Path, target: Path) -> None:
    """`target` as a copy of the folder `source` that takes no room if the disk can link."""
    with replace_folder(target) as staging:
        for path in source.iterdir():
            try:
                os.link(path, staging / path.name)
            except OSError:
                shutil.copyfile(path, staging / path.name)


_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}


def _accelerator(options: TrainOptions) -> tuple[Accelerator, torch.dtype]:
    device = selection.choose_device(options.settings.device)
    if device.index:
        raise SettingsError(
            f"Training takes the first device or, by `accelerate launch`, all; for {device} hide "
            f"the others (CUDA_VISIBLE_DEVICES={device.index}) and ask for {device.type}."
        )
    dtype = selection.choose_dtype(options.settings.dtype, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise DeviceError("Training in float16 needs a GPU; use --dtype bfloat16 or float32.")
    # The processes wait for one another while pages are checked and while one of them writes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    precision, cpu = _PRECISIONS[dtype], device.type == "cpu"
    return Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[patience]), dtype


def _trainable_network(
    options: TrainOptions, source: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Network, PeftModel | None]:
    """The network with gradients where they are wanted, and its adapters if there are any."""
    network = load_network(source, device, dtype if options.lora else torch.float32)
    adapted: PeftModel | None = None
    if options.lora:
        rank, alpha, dropout = options.lora_rank, options.lora_alpha, options.lora_dropout
        adapted = lora.add_lora(network, rank, alpha, dropout, options.lora_experts)
    else:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not lora.is_vision(name))
    if options.train_vision:
        lora.train_vision(network)
    route_in_float32(network)
    if options.checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    return network, adapted


def _fixed(
    options: TrainOptions, source: Path, dtype: torch.dtype, processes: int
) -> dict[str, object]:
    """What must be the same when a run goes on."""
    same = (
        "lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_experts", "train_vision",
        "resolution", "epochs", "lr", "warmup", "weight_decay", "balance", "max_tokens", "seed",
    )  # fmt: skip
    return {
        **{name: getattr(options, name) for name in same},
        "tasks": list(options.tasks),
        "dtype": str(dtype),
        "effective_batch": options.batch_size * options.grad_accum * processes,
        # How balanced the routers are is not a sum over pages: it depends on which are together.
        "batch_size": options.batch_size if options.balance else None,
        "checkpoint": checkpoint_digest(source),
        "train_file": file_digest(options.train_file),
        "val_file": file_digest(options.val_file) if options.val_file else None,
        "val_pages": options.val_pages if options.val_file else None,
    }


def _seed_of(seed: int, epoch: int, process: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{process}".encode()).digest()[:7])


def _digest_of(examples: Sequence[Example]) -> str:
    """Hash of what is trained on: names, tasks, and the sizes of the pictures, bytes."""
    sizes = {image: image.stat().st_size for image in {example.image for example in examples}}
    rows = [f"{one.name}\0{one.task}\0{sizes[one.image]}" for one in examples]
    return hashlib.sha256("\n".join(rows).encode("utf-8", "replace")).hexdigest()
