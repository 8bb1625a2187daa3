"""Trains the UNet and the text encoder together, from latents made beforehand.

Several processes of one thread each train the same weights on their own share of every batch: on a
CPU that is faster than one process of several threads, since the layers are small.
"""

from __future__ import annotations

import copy
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from data import FIELDS, decode
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from latents import LatentSet, load_latents
from schedule import Clock, Ema, save_atomically
from tokenizer import MAX_LENGTH, build_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from models import NOISE_SCHEDULE, TEXT_WIDTH, build_text_encoder, build_unet
from prompts import word

log = logging.getLogger("diffusion")

# Colours and places are decided at the noisy end, and learned within minutes; outlines are decided in
# the middle, and take the rest of the training. So most timesteps are drawn from there.
OUTLINE_STEPS = (150, 750)
EVERYWHERE_SHARE = 0.4
READER_WEIGHT = 0.02


@dataclass(frozen=True)
class Settings:
    """What the command line can choose."""

    work: Path
    minutes: float
    batch: int
    peak: float
    seed: int
    processes: int
    evaluate_every: float  # minutes
    restart_clock: bool = False
    start_from: Path | None = None  # a model folder whose weights are where a new training starts
    calm: float = 1.0  # see `calmed`
    dropout: float = 0.1  # share of prompts that are empty: what guidance leads away from


class Model(nn.Module):
    """The UNet, the text encoder, and a reader that is thrown away afterwards.

    The reader asks each padding token of an encoded prompt for what the prompt says (or that it does
    not say it). With that the text encoder learns words and which colour belongs to what in a minute
    or so, instead of through the UNet.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet()
        # On a CPU, a fifth faster in training than the fused attention that diffusers would choose.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = build_text_encoder(tokenizer)
        self.reader = nn.Linear(TEXT_WIDTH, sum(len(values) + 1 for _, values in FIELDS))

    def load(self, folder: Path) -> None:
        """Take over the weights of a finished model."""
        self.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
        self.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())

    def reading_loss(self, states: Tensor, lengths: Tensor, said: Tensor) -> Tensor:
        """How badly the reader reads a random padding token of each prompt."""
        place = lengths + (torch.rand(len(lengths)) * (MAX_LENGTH - lengths)).long()
        logits = self.reader(states[torch.arange(len(states)), place.clamp(max=MAX_LENGTH - 1)].float())
        parts = logits.split([len(values) + 1 for _, values in FIELDS], dim=1)
        return sum(
            (functional.cross_entropy(part, said[:, index]) for index, part in enumerate(parts)),
            start=torch.zeros(()),
        )


@dataclass
class Batch:
    """What one step of one process sees."""

    latents: Tensor
    tokens: Tensor
    lengths: Tensor  # tokens up to and with the end token
    said: Tensor  # what the prompt says: an index into each of FIELDS, or one past its end
    empty: Tensor  # whether the prompt was left out
    no_tokens: Tensor  # an empty prompt's tokens


class Batches:
    """Draws random pictures from the latents and words each anew."""

    def __init__(self, data: LatentSet, tokenizer: CLIPTokenizer, size: int, seed: int, dropout: float) -> None:
        self.data, self.tokenizer, self.size, self.dropout = data, tokenizer, size, dropout
        self.rng = random.Random(seed)
        self.generator = np.random.default_rng(seed)

    def next(self) -> Batch:
        """The next batch."""
        from renderkiln.worker.demo.vocabulary import parse_prompt

        chosen = torch.from_numpy(self.generator.integers(len(self.data.latents), size=self.size))
        prompts, said = [], []
        for row in self.data.drawings[chosen].tolist():
            prompt = "" if self.rng.random() < self.dropout else word(decode(row), self.rng)
            reading = parse_prompt(prompt)
            prompts.append(prompt)
            values = [(known, getattr(reading, name)) for name, known in FIELDS]
            said.append([known.index(value) if value else len(known) for known, value in values])
        tokens = self.tokenizer(
            [*prompts, ""], padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        )
        return Batch(
            self.data.latents[chosen].float(),
            tokens.input_ids[:-1],
            tokens.attention_mask[:-1].sum(dim=1),
            torch.tensor(said),
            torch.tensor([prompt == "" for prompt in prompts]),
            tokens.input_ids[-1:],
        )


def signal_and_noise() -> tuple[Tensor, Tensor]:
    """The shares of signal and noise at each of the training timesteps."""
    betas = torch.linspace(
        float(NOISE_SCHEDULE["beta_start"]), float(NOISE_SCHEDULE["beta_end"]), 1000, dtype=torch.float64
    )
    kept = torch.cumprod(1 - betas, dim=0)
    return kept.sqrt().float(), (1 - kept).sqrt().float()


def read_batch(model: Model, batch: Batch, with_unet: bool = True, calm: float = 1.0) -> tuple[Tensor, Tensor]:
    """The losses of the UNet and of the reader."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.text_encoder(batch.tokens).last_hidden_state
    reading = model.reading_loss(states, batch.lengths, batch.said)
    if not with_unet:
        return torch.zeros(()), reading
    signal, noise = signal_and_noise()
    # Timesteps spread evenly over the batch: less of the loss's noise comes from which ones were drawn.
    count = len(batch.latents)
    share = (torch.randperm(count) + torch.rand(count)) / count
    first, last = OUTLINE_STEPS
    steps = torch.where(
        share < EVERYWHERE_SHARE,
        share / EVERYWHERE_SHARE * 1000,
        first + (share - EVERYWHERE_SHARE) / (1 - EVERYWHERE_SHARE) * (last - first),
    )
    steps = steps.long().clamp(max=999)
    a, s = signal[steps].view(-1, 1, 1, 1), noise[steps].view(-1, 1, 1, 1)
    epsilon = torch.randn_like(batch.latents)
    noisy = a * batch.latents + s * epsilon
    with torch.autocast("cpu", torch.bfloat16):
        got = model.unet(noisy, steps, states).sample
    wanted = a * epsilon - s * batch.latents
    if calm > 1:
        return calmed(model, batch, noisy, steps, got.float(), wanted, calm), reading
    return functional.mse_loss(got.float(), wanted), reading


def calmed(
    model: Model, batch: Batch, noisy: Tensor, steps: Tensor, got: Tensor, wanted: Tensor, calm: float
) -> Tensor:
    """The loss under which guidance of strength `calm` gives what the prompt means, no more and no less.

    Guidance stretches the difference that a prompt makes. At the usual 7.5 that is far too much for flat
    drawings: outlines turn into caricatures. So the model learns to make a smaller difference to begin
    with, and strength 7.5 then acts as 7.5 / calm would.
    """
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        nothing = model.text_encoder(batch.no_tokens).last_hidden_state.expand(len(noisy), -1, -1)
        unprompted = model.unet(noisy, steps, nothing).sample.float()
    stretch = torch.where(batch.empty, 1.0, calm).view(-1, 1, 1, 1)
    stretched = torch.where(batch.empty.view(-1, 1, 1, 1), got, unprompted + stretch * (got - unprompted))
    return functional.mse_loss(stretched, wanted)


def average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """Give every process the mean of all processes' gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train_diffusion(settings: Settings) -> None:
    """Train, in as many processes as asked for."""
    meeting = settings.work.resolve() / "meeting"
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_train, (settings, str(meeting)), nprocs=settings.processes)


def _train(rank: int, settings: Settings, meeting: str) -> None:
    """One of the training processes; the first also logs, saves and evaluates."""
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=settings.processes)
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(settings.work / f"tokenizer-{rank}")
    model = Model(tokenizer)
    optimizer = build_optimizer(model)
    ema = Ema(model, 0.997 if settings.calm > 1 else 0.9985)
    clock = Clock(settings.minutes, peak=settings.peak, warmup_steps=200)
    checkpoint = settings.work / "diffusion.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        clock.resume(state["clock"])
        if settings.restart_clock:
            clock.resume({"step": clock.step, "spent": 0.0})
    seed = settings.seed + 1000 * clock.step + rank
    torch.manual_seed(seed)
    batches = Batches(
        load_latents(settings.work), tokenizer, settings.batch // settings.processes, seed, settings.dropout
    )
    parameters = list(model.parameters())
    if clock.step == 0:
        learners = parameters
        if settings.start_from:
            model.load(settings.start_from)
            learners = list(model.reader.parameters())  # the text encoder reads already
        teach_reading(model, batches, learners, settings.processes)
        clock = Clock(settings.minutes, peak=settings.peak, warmup_steps=200)
        ema = Ema(model, ema.decay)
    losses: list[float] = []
    last_save = last_score = time.monotonic()
    over = False
    while not over:
        for group in optimizer.param_groups:
            group["lr"] = clock.rate()
        loss, reading = read_batch(model, batches.next(), calm=settings.calm)
        optimizer.zero_grad(set_to_none=True)
        (loss + READER_WEIGHT * reading).backward()
        average_gradients(parameters, settings.processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(model, clock.step)
        clock.tick()
        losses.append(loss.item())
        if clock.step % 100 == 0:
            log.info("step %d loss %.4f reading %.4f %s", clock.step, np.mean(losses[-100:]), reading.item(), clock)
            over = agree(clock.is_over)  # the processes' clocks differ a little; all must stop together
        if rank == 0 and (over or time.monotonic() - last_save > 180):
            last_save = time.monotonic()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"ema": ema.state_dict(), "clock": clock.state_dict()}
            save_atomically(state, checkpoint)
        if rank == 0 and time.monotonic() - last_score > 60 * settings.evaluate_every:
            quick_score(model, ema, tokenizer, settings)
            last_score = time.monotonic()
    dist.destroy_process_group()


def agree(over: bool) -> bool:
    """The first process's opinion."""
    opinion = torch.tensor([int(over)])
    dist.broadcast(opinion, 0)
    return bool(opinion.item())


def build_optimizer(model: Model) -> torch.optim.AdamW:
    """AdamW; only matrices and kernels decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-8)


def teach_reading(
    model: Model, batches: Batches, learners: list[nn.Parameter], processes: int, steps: int = 500
) -> None:
    """A minute for the text encoder and its reader alone, until the tokens carry what the prompt says."""
    start = time.monotonic()
    optimizer = torch.optim.AdamW(learners, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        reading = read_batch(model, batches.next(), with_unet=False)[1]
        model.zero_grad(set_to_none=True)
        reading.backward()
        average_gradients(learners, processes)
        torch.nn.utils.clip_grad_norm_(learners, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            log.info("reading: step %d loss %.4f (%.0f s)", step, reading.item(), time.monotonic() - start)


def averaged(model: Model, ema: Ema) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Copies of the UNet and the text encoder with averaged weights."""
    twin = copy.deepcopy(model)
    ema.copy_to(twin)
    twin.eval()
    return twin.unet, twin.text_encoder


def quick_score(model: Model, ema: Ema, tokenizer: CLIPTokenizer, settings: Settings, count: int = 40) -> None:
    """Let the judge look at a few held-out prompts, and keep the pictures for a person to look at."""
    from evaluate import contact_sheet, render

    from models import assemble
    from renderkiln.worker.demo.judge import score
    from renderkiln.worker.demo.vocabulary import held_out_prompts

    unet, text_encoder = averaged(model, ema)
    pipeline = assemble(settings.work / "vae", unet, text_encoder, tokenizer)
    prompts = held_out_prompts(count)
    with torch.random.fork_rng():
        pictures = render(pipeline, prompts)
    log.info("score at the defaults: %s", score(list(zip(prompts, pictures, strict=True))))
    contact_sheet(prompts[:24], pictures[:24]).save(settings.work / "latest.png")


def load_ema(work: Path) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """The averaged models of the last checkpoint."""
    tokenizer = build_tokenizer(work / "tokenizer-export")
    model = Model(tokenizer)
    ema = Ema(model, 0.0)
    ema.load_state_dict(torch.load(work / "diffusion.pt", weights_only=True)["ema"])
    return *averaged(model, ema), tokenizer
